"""GGUF files: mapped, checked, typed."""
