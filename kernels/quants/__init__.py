"""One file a tensor format: how its blocks lie in the file, the value of a weight, and how blocks are multiplied.

A format's module has `value(p, i)`, the i-th weight of the block at address p as float32 (a Numba function). From the table in formats.py
it takes that there are `BLOCK` weights in `BYTES` bytes, and `KIND`, the family that says how it is multiplied (see products/):

- "q8k": 256 weights with scales for parts of 16 or 32; activations are Q8_K (see layout.py). The module gives `values(e, rows, act)`,
  four rows' blocks times an activation block, `unpack(e, rows, panel)`, 16 rows' blocks into a panel, and how that is laid out and
  multiplied, `PANEL` and `TILE`.
- "q8_0": groups of 32 weights, one or more in a block; activations are Q8_0. The module's `FORM` says what quants, scales and mins there
  are (see _blocks.py). It gives `load_four(e, groups)`, the first and the second halves of four groups' quants; `quarts(e, rows, number)`,
  the quants of that group of 16 rows' blocks, four in each lane; `scales(e, groups)`, a list of one or two f32 vectors with the groups in
  lanes; and where there are mins `mins(e, groups)`, such a vector.
  Where a format is `SCALED`, each tensor also has a scale, by which products are multiplied.
- "float": activations stay float32; "bf16": they are rounded to BF16. What they give: see products/floats.py.
"""
