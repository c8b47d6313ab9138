"""Ollama's HTTP API."""
