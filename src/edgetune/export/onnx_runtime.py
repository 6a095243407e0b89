"""ONNX Runtime on the CPU, as far as it is needed to see what a written decoder predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.core.errors import MissingExtraError, VerifyError

ERRORS = 3
"""Severity from which the library may write to the terminal."""

Feed = dict[str, NDArray[Any]]


class OnnxDecoder:
    """A decoder in ONNX Runtime.

    Args:
        file: as `onnx_graph.write_onnx` makes it.
        threads: of a matrix product.

    Raises:
        MissingExtraError: if onnxruntime is not installed.
        VerifyError: if it cannot load the file.
    """

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx", "Running an ONNX file") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS
        self._file = file
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library raises a family of types of its own
            raise VerifyError(f"ONNX Runtime cannot load it: {str(error)[:300]}", where=file) from error
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._state = [name for name in self._inputs if name.startswith("past_key_values.")]

    def start(self, batch: int = 1) -> list[NDArray[Any]]:
        """Return the empty cache, tensors [batch, heads, 0, width]."""
        shapes = [self._inputs[name].shape for name in self._state]
        return [np.zeros((batch, heads, 0, width), np.float32) for _, heads, _, width in shapes]

    def step(
        self,
        ids: NDArray[np.int64],
        past: Sequence[NDArray[Any]],
        mask: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Run some tokens behind those in the cache.

        Args:
            ids: int64 [batch, n].
            past: the cache, as `start` or the last step gave it.
            mask: int64 [batch, past + n]: 1 for real tokens, 0 for padding on the left; if not given all are real.

        Returns:
            logits [batch, n, vocabulary] and the cache.

        Raises:
            VerifyError: if the runtime cannot compute it.
        """
        before = past[0].shape[2]
        real = np.ones((len(ids), before + ids.shape[1]), np.int64) if mask is None else mask
        places = np.maximum(real.cumsum(1) - 1, 0)[:, before:]
        feed: Feed = {"input_ids": ids, "attention_mask": real, "position_ids": places}
        feed |= dict(zip(self._state, past, strict=True))
        try:
            logits, *cache = self._session.run(None, {name: feed[name] for name in self._inputs})
        except Exception as error:  # as above
            raise VerifyError(f"ONNX Runtime cannot run it: {str(error)[:300]}", where=self._file) from error
        return logits, cache

    def log_probabilities(self, ids: Sequence[int]) -> torch.Tensor:
        """Return log-probabilities behind every token of a text, float64 [tokens, vocabulary].

        The first half is read at once and the second from its cache, so that both ways are tried.
        """
        text = np.asarray([ids], np.int64)
        half = text.shape[1] // 2
        found, cache = [], self.start()
        for part in (text[:, :half], text[:, half:]):
            if part.size:
                logits, cache = self.step(part, cache)
                found.append(torch.from_numpy(logits[0]))
        return torch.cat(found).double().log_softmax(-1)
