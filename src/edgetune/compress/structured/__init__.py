"""Structured pruning: whole feed-forward channels, groups of heads and sub-modules are taken out of a decoder.

Read in this order: `families` (the table: which modules hold a group), `groups` (rows and columns of a group, and how
they are cut), `importance` and `gradients` (what a group is worth), `budget` and `chosen` (which groups stay),
`restore` and `repair` (least squares),
`pruning` (the driver), `modules` (whole sub-modules), `distil` (recovery).
"""
