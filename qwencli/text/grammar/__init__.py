"""Answers held to a JSON schema, a grammar or a regular expression."""
