"""One-shot compression: block-by-block calibration, one column sweep, rules that say what a column becomes.

Read in this order: `hessian` (what the inputs say), `sweep` (the solver and the seam `ColumnRule`), `grid` and
`rounding` (the rule that quantises), `solve` (one stage), `blocks` and `streams` (what a decoder looks like and
what flows through it), `sequential` (the driver), `method` (all of it named in one value).
"""
