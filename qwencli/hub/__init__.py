"""Models by name: what a name means, what is on this machine, and fetching the rest from the Hugging Face hub."""
