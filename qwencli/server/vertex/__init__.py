"""Predictions as Vertex AI asks for them: an HTTP API."""
