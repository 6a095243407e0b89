"""The sections of a recipe: every setting with its range, its default and one line about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgetune.recipe.method_section import Section


class ModelSection(Section):
    """Which base model."""

    source: str = "embedded"
    """A Hugging Face model folder, a GGUF file, a Hub id, a name of `edgetune fetch`, or `embedded`."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$")
    """Where the model computes: auto (a CUDA GPU if there is one), cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "float32"
    """Type of the weights while tuning; `auto` is the stored type."""
    accept_rounding: bool = False
    """Go on where this type rounds away more than half of a perturbation, which is refused otherwise."""
    residency: Literal["fused", "streamed", "streamed-q8_0", "streamed-q4_0"] = "fused"
    """`fused` stores the tuned weights; `streamed` forms them from ledger and base, which may be packed, when read."""


class DataSection(Section):
    """Which data, and what no device sees."""

    source: str = "embedded"
    """A jsonl or parquet file or a datasets id with Dolly's columns, or `embedded`."""
    records: int | None = Field(default=None, ge=1, le=10**8)
    """Spread only this many records over the devices, drawn at random; all if not set (1000 for `embedded`)."""
    held_out_category: str | None = None
    """A category that no device sees and that evaluation uses (FedKSeed's protocol)."""
    held_out: int = Field(default=100, ge=1, le=10**7)
    """Records held out for evaluation."""
    calibration: int = Field(default=64, ge=1, le=10**6)
    """Records set aside as the server's own sample for compression and parity checks; no device sees them."""
    prompt: Literal["auto", "chat", "alpaca", "fedkseed"] = "auto"
    """Prompt template; `auto` takes the tokenizer's chat template if it has one, else Alpaca's."""
    max_tokens: int = Field(default=256, ge=8, le=1 << 20)
    """Greatest length of prompt and response together."""


class SplitSection(Section):
    """How records are spread over the devices."""

    kind: Literal["dirichlet", "iid", "quantity"] = "dirichlet"
    """Dirichlet over categories, identically distributed, or Dirichlet over quantities."""
    alpha: float = Field(default=0.5, ge=1e-4, le=1e6)
    """Concentration; smaller is more uneven."""
    minimum: int = Field(default=4, ge=1, le=10**6)
    """Least number of records a device holds."""


class FederationSection(Section):
    """How wide and how long."""

    devices: int = Field(default=20, ge=1, le=10**6)
    """Number of devices."""
    participation: float = Field(default=0.1, gt=0, le=1)
    """Share of the devices asked in a round."""
    rounds: int = Field(default=20, ge=1, le=10**6)
    """Number of rounds (checkpoint intervals for a single device)."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes that devices of a round train in, each with a model of its own; 0 takes what cores and memory allow."""


class CompressionSection(Section):
    """How the tuned model is compressed."""

    name: str = "optq"
    """A name listed by `edgetune methods`."""
    grid: Literal["Q4_0", "Q8_0"] = "Q4_0"
    """GGUF block type of the linear layers."""


class ExportSection(Section):
    """How the GGUF file is written."""

    pre_tokenizer: str | None = None
    """llama.cpp's name of the pre-tokenizer, where the model's is none of those known."""


class EvaluationSection(Section):
    """How results are measured."""

    every: int = Field(default=1, ge=1, le=10**6)
    """Rounds between held-out losses."""
    answer_every: int = Field(default=0, ge=0, le=10**6)
    """Rounds between Rouge-L measurements; 0 measures it before and after only."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    """Records a batch while evaluating."""
    max_new_tokens: int = Field(default=48, ge=1, le=1 << 20)
    """Length of generated answers."""
    samples: int = Field(default=4, ge=0, le=10**4)
    """Held-out prompts whose answers are shown."""
