"""One file a tensor format: how its blocks lie in the file, the value of a weight, and how blocks are multiplied.

A format's module has `value(p, i)`, the i-th weight of the block at address p as float32 (a Numba function). A block has `BLOCK` weights
in `BYTES` bytes, and `KIND` is the family that says how it is multiplied (see products/); all three come from the table in formats.py.

- "q8k": 256 weights with scales for parts of 16 or 32; activations are Q8_K (see layout.py). The module has `values(e, rows, act)`, the
  blocks of four rows times an activation block; `unpack(e, rows, panel)`, which unpacks the blocks of 16 rows into a panel; and `PANEL` and
  `TILE`, how a panel is laid out and multiplied.
- "q8_0": groups of 32 weights, one or more in a block; activations are Q8_0. The module's `FORM` says what quants, scales and mins there
  are (see _blocks.py). It has `load_four(e, groups)`, the first and the second halves of four groups' quants; `quarts(e, rows, number)`,
  the quants of one group in the blocks of 16 rows, four in each lane; `scales(e, groups)`, a list of one or two f32 vectors with the groups
  in lanes; and, where there are mins, `mins(e, groups)`, one such vector.
  Where a format is `SCALED`, each tensor also has a scale, by which products are multiplied.
- "float": activations stay float32; "bf16": they are rounded to BF16. For what these modules have see products/floats.py.
"""
