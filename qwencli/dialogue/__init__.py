"""Conversations: what was said and under which settings, and who answers, a model here or one behind a server."""
