"""The Triton kernels equal the torch reference and the C kernel bit for bit: in Triton's interpreter, and on CUDA."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_chacha import RFC
from test_native import DTYPES, KEY, projected, some_terms, weights

from edgetune.core.errors import ConfigError, MissingExtraError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import KINDS, CachedSource, Gaussian, Hadamard, Kind, Rademacher, gpu, native
from edgetune.directions.kernel import VARIABLE, compiled_level, describe_kernel, triton_wanted
from edgetune.directions.space import BoundSpace

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())["directions"]
SERVED = [Rademacher(), Gaussian(), *map(Hadamard, (1, 2, 3, 20, 64, 300, 512, 4096, 10_000, 20_000))]
FEW = [
    (0, torch.float32),
    (1, torch.float16),
    (31, torch.bfloat16),
    (8193, torch.float32),
    (16_389, torch.float16),
]
"""What the interpreter gets: it needs a third of a second for a tile."""
ALL = [(size, dtype) for size in (0, 1, 31, 512, 8193, 50_001, 1_000_003) for dtype in DTYPES]
needs_triton = pytest.mark.skipif(gpu.loaded() is None, reason="triton is not installed: make test-triton")
interpreter = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(
        not gpu.interpreted(), reason="needs Triton and TRITON_INTERPRET=1: make test-triton"
    ),
)
cuda = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available() or gpu.interpreted(), reason="no CUDA device"),
        needs_triton,
    ],
)
devices = pytest.mark.parametrize("device", [interpreter, cuda])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare raw bits: zeros of both signs differ."""
    number = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.cpu().view(number), b.cpu().view(number))


def reference(
    kind: Kind, base: torch.Tensor, terms: list[tuple[int, float]], replay: bool, dtype: torch.dtype
) -> torch.Tensor:
    out = torch.empty(base.shape, dtype=dtype)
    if replay:
        kind.replay(out, base, terms, CachedSource(KEY), "w")
    else:
        kind.axpy(out, base, terms[0][1], CachedSource(KEY), "w", terms[0][0])
    return out


def formed(
    kind: Kind,
    base: torch.Tensor,
    terms: list[tuple[int, float]],
    replay: bool,
    dtype: torch.dtype,
    device: str,
) -> torch.Tensor:
    out = torch.full(base.shape, 7.0, dtype=dtype, device=device)
    gpu.run(kind, KEY, "w", out, base.to(device), projected(terms), replay=replay)
    return out


@devices
@pytest.mark.parametrize("kind", SERVED, ids=str)
@pytest.mark.parametrize("replay", [False, True], ids=["axpy", "replay"])
def test_equal_bits(kind: Kind, replay: bool, device: str) -> None:
    for size, dtype in FEW if device == "cpu" else ALL:
        base, terms = weights(size, dtype), some_terms(kind, 3)
        terms = terms if replay else terms[-1:]
        got = formed(kind, base, terms, replay, dtype, device)
        assert same(got, reference(kind, base, terms, replay, dtype)), (size, dtype)
        if native.library() is not None:
            compiled = torch.empty_like(base)
            kernel = native.TensorDirections(kind, KEY, "w")
            if replay:
                kernel.replay(compiled, base, native.Terms(kind, projected(terms)))
            else:
                kernel.axpy(compiled, base, terms[0][1], terms[0][0])
            assert same(got, compiled), (size, dtype)


@devices
@pytest.mark.parametrize("replay", [False, True], ids=["axpy", "replay"])
@pytest.mark.parametrize("kind", [Gaussian(), Hadamard(64)], ids=str)
def test_base_and_result_may_have_any_two_types(kind: Kind, replay: bool, device: str) -> None:
    for base_dtype in DTYPES:
        for dtype in DTYPES:
            base, terms = weights(999, base_dtype), some_terms(kind, 1)
            got = formed(kind, base, terms, replay, dtype, device)
            assert same(got, reference(kind, base, terms, replay, dtype)), (base_dtype, dtype)


@devices
def test_a_replay_without_terms_is_the_base(device: str) -> None:
    base = weights(100, torch.float32)
    for kind in (Rademacher(), Gaussian(), Hadamard(8)):
        out = torch.empty(100, device=device)
        gpu.run(kind, KEY, "w", out, base.to(device), Projected.none(), replay=True)
        assert same(out, base)


@devices
def test_a_pool_of_more_than_a_tile_crosses_scratch(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    kind, base = Hadamard(32_768), weights(32_768 + 700, torch.bfloat16)
    monkeypatch.setattr(gpu, "SCRATCH", 32_768)
    terms = some_terms(kind, 200)
    got = formed(kind, base, terms, True, torch.bfloat16, device)
    assert same(got, reference(kind, base, terms, True, torch.bfloat16))


@devices
@pytest.mark.parametrize("start", [8192, 40_960])
@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(300), Hadamard(20_000)], ids=str)
def test_a_part_is_that_part_of_the_whole(
    kind: Kind, start: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = weights(start + 8200, torch.float32)
    whole = reference(kind, base, [(5, 0.01)], False, torch.float32)
    monkeypatch.setenv(VARIABLE, "triton")
    space = BoundSpace(kind, KEY)
    monkeypatch.setattr(Kind, "axpy", None)  # what follows must not come from the reference
    part = base[start:].to(device)
    space.axpy(part, part, 0.01, "w", 5, start)
    assert space.alignment == native.ALIGNMENT
    assert same(part, whole[start:])


@devices
def test_the_handle_replays_through_the_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, kind = weights(600, torch.float16), Hadamard(64)
    expected = reference(kind, base, some_terms(kind), True, torch.float16)
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.setattr(Hadamard, "replay", None)
    out = base.to(device)
    BoundSpace(kind, KEY).replay(out, out, projected(some_terms(kind)), "w")
    assert same(out, expected)


@devices
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@np.errstate(invalid="ignore", over="ignore")  # the interpreter is numpy
def test_halves_are_rounded_to_nearest_even_and_nan_stays_nan(dtype: torch.dtype, device: str) -> None:
    base = torch.linspace(-65_500, 65_500, 5001)
    base = torch.cat(
        [base, base * 1e-6, base * 1e-10, torch.arange(1, 4096).int().mul(1 << 15).view(torch.float32)]
    )
    assert same(
        formed(Rademacher(), base, [(1, 1e-7)], False, dtype, device),
        reference(Rademacher(), base, [(1, 1e-7)], False, dtype),
    )
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = formed(Rademacher(), every, [(1, 0.0)], False, dtype, device).cpu()
    finite = torch.isfinite(every) & (every != 0)
    assert same(out[finite], every[finite])
    assert torch.equal(out.isnan(), every.isnan())
    assert torch.equal(out.isinf(), every.isinf())


@devices
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", [Rademacher(), Gaussian()], ids=str)
def test_narrow_weights_and_their_remainders_follow_steps(
    kind: Kind, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a narrow base and a float32 one, in one call and going on, tiny and negative values included."""
    size = 9001 if device == "cpu" else 200_003
    wide = torch.cat([weights(size - 4096, torch.float32), torch.arange(-2048, 2048) * 1e-9])
    terms = [(seed, coefficient * 1e-3) for seed, coefficient in some_terms(kind, 4)]
    monkeypatch.setenv(VARIABLE, "torch")
    plain = BoundSpace(kind, KEY)
    monkeypatch.setenv(VARIABLE, "triton")
    ours = BoundSpace(kind, KEY)
    for base in (wide, wide.to(dtype)):
        expected = torch.empty(size, dtype=dtype), torch.empty(size, dtype=torch.int16)
        plain.follow(*expected, projected(terms), "w", base)
        found = tuple(torch.empty_like(one, device=device) for one in expected)
        there = base.to(device)
        with monkeypatch.context() as only:
            only.setattr(BoundSpace, "axpy", None)  # what follows must not come from the reference
            ours.follow(*found, projected(terms[:2]), "w", there)
            ours.follow(*found, projected(terms[2:3]), "w")
            ours.follow(*found, projected(terms[3:]), "w")
        assert same(found[0], expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
    with pytest.raises(ValueError, match="formed anew"):
        gpu.follow(Hadamard(8), KEY, "w", *found, Projected.none())


@devices
def test_a_coefficient_beyond_float32_is_infinite(device: str) -> None:
    out = torch.zeros(64, device=device)
    gpu.run(Rademacher(), KEY, "w", out, out, Projected.of(1, 1e300), replay=False)
    assert bool(out.isinf().all())


@devices
@pytest.mark.parametrize("case", RFC)
def test_the_block_function_gives_the_vectors_of_rfc_8439(case: str, device: str) -> None:
    key, counter, nonce, expected = RFC[case]
    zero, signs = torch.zeros(512, device=device), torch.empty(512, device=device)
    words = torch.tensor(struct.unpack("<8i", key), dtype=torch.int32, device=device)
    one = struct.unpack("<i", struct.pack("<f", 1))[0]
    gpu.loaded().perturb[(1,)](
        signs, zero, 512, counter * 512, words, *struct.unpack("<3i", bytes.fromhex(nonce)), one, None,
        KIND=0, PADDED=1, PER_WORD=32, LANES=32, OUT_BFLOAT=False, BASE_BFLOAT=False, **gpu.LAUNCH,
    )  # fmt: skip
    bits = (signs.cpu().numpy() < 0).astype(np.uint8)
    assert np.packbits(bits, bitorder="little").tobytes().hex() == expected


@devices
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['kind']}-{case['start']}")
def test_published_vectors_are_reproduced(case: dict[str, object], device: str) -> None:
    kind = Hadamard(case["size"]) if case["kind"] == "hadamard" else KINDS[str(case["kind"])]()
    out = torch.zeros(int(case["start"]) + int(case["count"]), device=device)
    gpu.run(
        kind,
        pool_key(case["master_seed"]),
        case["name"],
        out,
        out,
        Projected.of(case["seed"], 1.0),
        replay=False,
    )
    z = out[int(case["start"]) :].cpu()
    assert hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest() == case["sha256"]


@needs_triton
def test_the_compiled_kernels_neither_fuse_nor_flush() -> None:
    """The interpreter never fuses a multiplication with an addition; the compiler does unless it is told not to."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=plain, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    allowed = found.pop("gaussian with fusion")
    assert allowed["fused"] + allowed["open"] > 0
    assert len(found) >= 20
    assert all(one["open"] == one["fused"] == one["flushed"] == 0 for one in found.values()), found
    assert all(one["added"] > 0 for name, one in found.items() if not name.startswith("transform_rows"))


def test_without_triton_the_others_run_and_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "loaded", lambda: None)
    assert "triton" not in describe_kernel()
    assert not gpu.serves(Rademacher(), torch.zeros(3))
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(MissingExtraError, match=r"edgetune\[gpu\]"):
        BoundSpace(Rademacher(), KEY)


def test_triton_on_demand_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "loaded", lambda: type("Kernels", (), {"INTERPRETED": False}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not triton_wanted()
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(ConfigError, match="CUDA device"):
        triton_wanted()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert triton_wanted()
    assert compiled_level() is None
    assert describe_kernel() == "triton (CUDA tensors)"
    monkeypatch.setenv(VARIABLE, "auto")
    assert describe_kernel().startswith("triton (CUDA tensors)")
    assert (compiled_level() is None) == (native.library() is None)
    monkeypatch.setenv(VARIABLE, "tritn")
    with pytest.raises(ConfigError, match="did you mean 'triton'"):
        triton_wanted()


def test_what_cannot_be_asked_of_the_kernels_is_refused() -> None:
    w = torch.zeros(10)
    with pytest.raises(ValueError, match="multiple of 8192"):
        gpu.run(Rademacher(), KEY, "w", w, w, Projected.of(1, 1.0), replay=False, start=512)
    with pytest.raises(ValueError, match="multiple of 8192"):
        gpu.run(Rademacher(), KEY, "w", w, w, Projected.of(1, 1.0), replay=True, start=8192)
    with pytest.raises(ValueError, match="one term"):
        gpu.run(Rademacher(), KEY, "w", w, w, Projected.none(), replay=False)
    assert not gpu.serves(Rademacher(), w.double())
    assert not gpu.serves(Rademacher(), torch.zeros(4, 4).T)
