"""One file per architecture, named after its `general.architecture`: `build(file)` makes the Model of a GGUF file.

There is no list of them anywhere else: a new file here is a new architecture.
"""
