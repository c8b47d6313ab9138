"""What is asked of a model, and its answer while it runs: the same for the commands, the Python API and every HTTP API."""
