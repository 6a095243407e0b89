"""What happens to the model file of a run: planned, refused, verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgetune.core.events import Event


@dataclass(frozen=True, slots=True)
class ExportPlanned(Event):
    """What the file at the end of the run will be, and what was found out about it before the run."""

    kind: ClassVar[str] = "planned"
    architecture: str
    """llama.cpp's name of the model family."""
    file_type: str
    """ggml type of most matrices."""
    size_bytes: int
    """Of all tensors; the file is larger by its header."""
    context: int
    """Tokens the file computes exactly."""
    texts: int
    """Texts of which llama.cpp's tokenizer made the ids that are trained on."""
    texts_in_all: int
    composed: int
    """Texts whose characters are not composed (NFC); the model reads them composed, llama.cpp must be given them so."""
    notes: list[str] = field(default_factory=list)
    """What the file says otherwise than the model's own files."""


@dataclass(frozen=True, slots=True)
class ExportRefused(Event):
    """Tuning goes on, but the tuned model cannot become a GGUF file."""

    kind: ClassVar[str] = "unexportable"
    why: str


@dataclass(frozen=True, slots=True)
class Verified(Event):
    """The exported file was reloaded and compared with the model it came from."""

    kind: ClassVar[str] = "verified"
    file: str
    max_log_probability_difference: float
    mean_log_probability_difference: float
    perplexity_torch: float
    perplexity_llama_cpp: float
    tokenizer_texts: int
    """Texts on which both tokenizers gave the same ids."""
    usual_max_difference: float | None = None
    """The same two differences as llama.cpp runs by default, with fp16 attention; those above are with fp32."""
    usual_mean_difference: float | None = None
    size_bytes: int | None = None
    """Of the file."""
    transfer_bytes: int | None = None
    """Of the file compressed as a whole, what it takes on the wire."""
    transfer_coding: str = ""
    """zstd or deflate."""
