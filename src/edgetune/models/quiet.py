"""Silence for libraries that talk to the terminal while they load."""

from __future__ import annotations

import logging as levels
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from edgetune.core.exclusive import LIBRARIES


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the Hub from logging, warning and drawing progress bars within a block.

    Their settings belong to the process, like others that transformers changes while it builds a model; so one thread
    at a time is in such a block. The settings are as before after it, also after an error.
    """
    with LIBRARIES:
        yield from _silenced()


def _silenced() -> Iterator[None]:
    level, bars, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if not hub_bars:
            enable_progress_bars()
