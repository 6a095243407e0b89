from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from toys import tiny_llama

from edgetune.core.errors import OutputError
from edgetune.export.imatrix import write_imatrix

NAME = "model.layers.1.self_attn.q_proj.weight"


def test_it_holds_sums_and_counts_under_llama_cpps_names(tmp_path: Path) -> None:
    sums = torch.rand(64)
    path = write_imatrix(
        tmp_path / "i.gguf",
        tiny_llama().config,
        {NAME: (sums, 96)},
        sources=["a.txt"],
        sequences=4,
        length=24,
    )
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found.keys() == {"blk.1.attn_q.weight.in_sum2", "blk.1.attn_q.weight.counts"}
    np.testing.assert_array_equal(found["blk.1.attn_q.weight.in_sum2"].data, sums.numpy()[None])
    assert found["blk.1.attn_q.weight.counts"].data.tolist() == [[96.0]]
    assert found["blk.1.attn_q.weight.in_sum2"].shape.tolist() == [64, 1]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 24


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_imatrix(
            tmp_path / "no" / "i.gguf",
            tiny_llama().config,
            {NAME: (torch.ones(4), 1)},
            sources=[],
            sequences=1,
            length=1,
        )
