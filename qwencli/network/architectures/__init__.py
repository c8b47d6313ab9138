"""One file an architecture, named as `general.architecture` names it: `build(file)` makes the Model of a GGUF file.

Nothing else lists them: a new file here is a new architecture.
"""
