"""The hosted model: requests, the Gemini transport, pacing, retrying, and the paid call that ties them together."""
