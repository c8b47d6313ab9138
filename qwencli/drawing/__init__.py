"""A graph as a picture: which boxes and edges there are, where they go, and the formats in which they are written."""
