"""A graph as a picture: which boxes and edges there are, where they go, and the formats in which they are written."""

SUFFIXES = (".svg", ".dot", ".png", ".json", ".mmd")
"""Of the files that `formats` knows. They are here so that a command can look at a name without loading any of this."""
