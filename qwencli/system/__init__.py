"""What concerns the operating system: the machine, files that are replaced atomically, processes with limits."""
