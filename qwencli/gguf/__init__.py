"""GGUF files: mapped, checked, and read as typed values."""
