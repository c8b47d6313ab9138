"""One file per tensor format: the layout of its blocks in the file, the value of a weight, and how blocks are multiplied.

The module of a format has `value(p, i)`, a Numba function that returns the i-th weight of the block at address p as float32. A block has
`BLOCK` weights in `BYTES` bytes, and `KIND` is the family, which decides how it is multiplied (see products/). All three come from the
table in formats.py. The rest depends on the family:

- "q8k": 256 weights with scales for parts of 16 or 32; activations are Q8_K (see layout.py). `values(e, rows, act)` multiplies the blocks
  of four rows by an activation block. `unpack(e, rows, panel)` unpacks the blocks of 16 rows into a panel. `PANEL` and `TILE` say how a
  panel is laid out and multiplied.
- "q8_0": one or more groups of 32 weights in a block; activations are Q8_0. `FORM` describes the quants, scales and mins (see _blocks.py).
  `load_four(e, groups)` returns the first and the second halves of four groups' quants. `quarts(e, rows, number)` returns the quants of one
  group in the blocks of 16 rows, four in each lane. `scales(e, groups)` returns a list of one or two f32 vectors with the groups in lanes;
  `mins(e, groups)`, if there are mins, one such vector. If the format is `SCALED`, each tensor also has a scale for its products.
- "float" and "bf16": activations stay float32 or are rounded to BF16. See products/floats.py for what these modules have.
"""
