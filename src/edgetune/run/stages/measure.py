"""Measure the file in the runtime that devices use."""

import time

import torch

from edgetune.export.llama_cpp import LlamaCpp
from edgetune.recipe.preflight import needed_context
from edgetune.run.deploy import file_quality
from edgetune.run.stage import File, Stage
from edgetune.run.work import Work


def _work(work: Work, given: File) -> File:
    start, context = time.perf_counter(), needed_context(work.prepared)
    with LlamaCpp(given.path, threads=torch.get_num_threads(), context=context) as engine:
        quality = file_quality(engine, work.prepared, work.progress)
        peak = engine.peak_memory_bytes
    work.row("llama.cpp", quality, given.path.stat().st_size, peak, time.perf_counter() - start)
    return given


STAGE = Stage(
    name="measure",
    summary="Measures the file in llama.cpp on the same records.",
    cost="one forward pass and one greedy answer a held-out record, in llama.cpp",
    takes=File,
    gives=File,
    work=_work,
)
