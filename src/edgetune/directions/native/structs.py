"""What the compiled kernel is handed, field by field."""

from __future__ import annotations

import ctypes


class Job(ctypes.Structure):
    """Mirror of `job` in kernel.c."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("out_dtype", ctypes.c_int32),
        ("base_dtype", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("terms", ctypes.c_int32),
        ("key", ctypes.c_uint32 * 8),
        ("tensor", ctypes.c_uint32),
        ("padded", ctypes.c_uint32),
        ("seeds", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("start", ctypes.c_int64),
    )


class Followed(ctypes.Structure):
    """Mirror of `followed` in kernel.c."""

    _fields_ = (("task", Job), ("remainder", ctypes.c_void_p), ("joins", ctypes.c_int32))


class Reading(ctypes.Structure):
    """Mirror of `product` in product_job.h; its two scales are fields of their own."""

    _fields_ = (
        ("direction", Job),
        ("state", Job),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("outs", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("step_seed", ctypes.c_uint64),
        ("scale", ctypes.c_float),
        ("other_scale", ctypes.c_float),
        ("step", ctypes.c_float),
        ("points", ctypes.c_int32),
        ("formed", ctypes.c_int32),
        ("replay", ctypes.c_int32),
        ("folds", ctypes.c_int32),
        ("fold", Job),
        ("padded", ctypes.c_int64),
        ("unit", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        ("across", ctypes.c_void_p),
    )


class Tiling(ctypes.Structure):
    """Mirror of `tiling` in tiling.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("signs", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("wide", ctypes.c_int64),
    )


class Ranked(ctypes.Structure):
    """Mirror of `ranked` in tiling.h."""

    _fields_ = (
        ("task", Job),
        ("core", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("tall", ctypes.c_int64),
        ("wide", ctypes.c_int64),
        ("row_seed", ctypes.c_uint64),
        ("column_seed", ctypes.c_uint64),
        ("column_block", ctypes.c_int64),
        ("signed_rows", ctypes.c_int32),
        ("streams", ctypes.c_int32),
    )


class Apart(ctypes.Structure):
    """Mirror of `apart` in tiling.h."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("u", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("outs", ctypes.c_int64),
        ("each", ctypes.c_int64),
    )
