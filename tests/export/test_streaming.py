"""A file is written a tensor at a time, and a disk that fills up leaves nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import quantise, tiny_llama
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgetune.core.errors import OutputError
from edgetune.core.export_events import Verified
from edgetune.core.gguf_read import read_gguf
from edgetune.core.quantised import Q4_K
from edgetune.export.checked import deploy
from edgetune.export.gguf_file import write_gguf

resource = pytest.importorskip("resource", reason="file sizes are limited on POSIX only")


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_llama(hidden_size=256, intermediate_size=1024, num_hidden_layers=8)


@pytest.mark.parametrize("packed", [False, True])
def test_one_tensor_is_in_memory_beyond_the_model(
    packed: bool, model: PreTrainedModel, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    quantised = quantise(model, Q4_K) if packed else {}
    write_gguf(tmp_path / "warm.gguf", model, tokenizer, quantised=quantised)
    tracemalloc.start()
    try:
        path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised, float_type="F32")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(tensor.size or 0 for tensor in read_gguf(path).tensors)
    header = path.stat().st_size - sum(tensor.size or 0 for tensor in read_gguf(path).tensors)
    scratch = 8 * 1024 * 256 if packed else 2 * largest
    assert peak < largest + scratch + 20 * header
    assert peak < path.stat().st_size / 2, "else this says nothing"


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 200 kB: a write fails in its middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("older", [None, "older"])
def test_a_disk_that_fills_up_leaves_nothing(
    older: str | None, model: PreTrainedModel, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    target = tmp_path / "model.gguf"
    if older is not None:
        target.write_text(older)
    quantised = quantise(model, Q4_K)

    def check(path: Path) -> Verified:
        raise AssertionError(f"{path} is not to be checked")

    with pytest.raises(OutputError, match=r"model\.gguf: cannot write: .*free some space") as refused:
        deploy(target, lambda path: write_gguf(path, model, tokenizer, quantised=quantised), check)
    assert ".edgetune-" not in str(refused.value)
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if older is None else [older])
