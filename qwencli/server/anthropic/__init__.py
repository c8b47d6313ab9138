"""Anthropic's HTTP API."""
