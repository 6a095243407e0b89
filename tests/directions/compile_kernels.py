"""Compile every Triton kernel for two GPUs, which needs none; print the multiplications and additions found as JSON.

What may be fused is counted in PTX, whose sums without `.rn` the assembler is free to fuse, what is fused there and in
the assembled code. Which of both the compiler leaves to whom depends on its version.

Run without TRITON_INTERPRET: the interpreter replaces the compiler when Triton is imported.
"""

from __future__ import annotations

import json
import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.disasm import get_sass

from edgetune.directions import gpu
from edgetune.directions.gpu import followed, tiled
from edgetune.directions.gpu.rank_one import SHAPE

TYPES = {
    "out": "*fp16", "base": "*fp16", "scratch": "*fp32", "key": "*i32", "table": "*fp32", "seeds": "*i32",
    "coefficients": "*i32", "count": "i64", "weight": "*fp16", "remainder": "*i16",
    "core": "*fp32", "words": "*i32",
}  # fmt: skip
"""Of the arguments; the others are int32."""
HALF = {"OUT_BFLOAT": False, "BASE_BFLOAT": False}
SIGNS = {"PER_WORD": 32, "LANES": 32, **HALF}
NORMAL = {"KIND": 1, "PER_WORD": 2, "LANES": 256, **HALF}
BLOCK = {"LANES": 32, **HALF}
HOMES = {"follow": followed, "add_core": tiled, "add_terms": tiled}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "perturb rademacher": ("perturb", {"KIND": 0, "PADDED": 1, **SIGNS}),
    "perturb hadamard": ("perturb", {"KIND": 2, "PADDED": 4096, **SIGNS}),
    "perturb gaussian": ("perturb", {"PADDED": 1, **NORMAL}),
    "accumulate rademacher": ("accumulate", {"KIND": 0, **SIGNS}),
    "accumulate gaussian": ("accumulate", NORMAL),
    "follow rademacher": ("follow", {"KIND": 0, "FROM_BASE": True, **SIGNS}),
    "follow gaussian": ("follow", {"FROM_BASE": False, **NORMAL}),
    "transform": ("transform", {"PADDED": 4096, "LEVELS": 12, **BLOCK}),
    "transform_rows": ("transform_rows", {"PADDED": 1 << 16, "LEVELS": 14, "LANES": 32}),
    "add_core": ("add_core", {"TALL": 64, "ACROSS": 64, "MATRIX": True, **SHAPE, **HALF}),
    "add_terms": ("add_terms", {**SHAPE, **HALF}),
    "transform_columns": ("transform_columns", {"ROW": 1 << 14, "ROWS": 4, "LEVELS": 2, **HALF}),
}


def compiled(case: str, capability: int, fused: bool = False) -> dict[str, int]:
    name, constants = CASES[case]
    kernel = getattr(HOMES.get(name, gpu.loaded()), name)
    types = TYPES | ({"coefficients": "*fp32"} if name.startswith("transform") else {})
    signature = {at: "constexpr" if at in constants else types.get(at, "i32") for at in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    options = gpu.LAUNCH | {"enable_fp_fusion": fused}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
    text, assembled = made["ptx"], get_sass(made["cubin"])
    return {
        "open": len(re.findall(r"\b(?:add|sub|mul)\.f32", text)),
        "fused": len(re.findall(r"\b(?:fma|mad)\.\S*f32", text)) + len(re.findall(r"\bFFMA", assembled)),
        "flushed": text.count(".ftz") + assembled.count(".FTZ"),
        "added": len(re.findall(r"\b(?:add|sub)\.\S*f32", text)),
    }


if __name__ == "__main__":
    found = {f"{case}, sm_{number}": compiled(case, number) for case in CASES for number in (80, 90)}
    found["gaussian with fusion"] = compiled("perturb gaussian", 90, fused=True)
    print(json.dumps(found))
