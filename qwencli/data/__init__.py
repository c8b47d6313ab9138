"""Package data: the embedded demo model and its card."""
