"""The OpenAI-compatible HTTP API over the student and the router."""
