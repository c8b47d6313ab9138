"""Conversations: what was said, with which settings, and who answers: a model here or a server."""
