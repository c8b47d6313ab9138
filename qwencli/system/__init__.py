"""The operating system's part: the machine, files written whole, processes under limits."""
