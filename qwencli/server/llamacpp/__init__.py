"""llama.cpp's HTTP API."""
