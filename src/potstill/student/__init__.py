"""The local model: a base with adapters, answering for several roles in one batch."""
