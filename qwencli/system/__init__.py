"""What depends on the operating system: the machine, files written whole, processes under limits."""
