"""OpenAI's responses: an HTTP API."""
