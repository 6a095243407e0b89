"""The sections of a recipe: every setting with its range, its default and one line about it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, WrapValidator

from edgetune.recipe.method_section import Section

Grid = Annotated[
    Literal[
        "Q2_K", "Q3_K", "IQ4_XS", "MXFP4", "Q4_0", "IQ4_NL", "NVFP4", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K",
        "Q8_0",
    ],
    WrapValidator(lambda given, known: _named(given) or known(given.upper() if isinstance(given, str) else given)),
]  # fmt: skip
"""Every name of `core.quantised.GRIDS`, in small or capital letters, and of `core.integers.INTEGERS`."""
_INTEGERS = re.compile(r"u?int[2348]-(g32|g64|g128|row)(-bf16)?")


def _named(given: object) -> str | None:
    """Return the name of a grid of integers, if this is one: there are too many for a list in an error."""
    name = given.lower() if isinstance(given, str) else ""
    return name if _INTEGERS.fullmatch(name) else None


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
    """`fused` stores the tuned weights; `streamed` forms them from ledger and base, which may be packed, when read; the
    matrices of a GGUF file then stay in it."""


class DataSection(Section):
    """Which data, and what no device sees."""

    source: str = "embedded"
    """A file (jsonl, json, csv, tsv, txt, parquet), a datasets id, or `embedded`; docs/data.md lists the shapes."""
    test: str | None = None
    """A source of which all is held out for evaluation; then nothing of `source` is, and copies are left out there."""
    columns: dict[str, str] | None = None
    """Which column says what: instruction, context, response, category, system, messages or text = its name."""
    records: int | None = Field(default=None, ge=1, le=10**8)
    """Spread only this many records over the devices, drawn at random; all if not set (1000 for `embedded`)."""
    held_out_category: str | None = None
    """A category that no device sees and that evaluation uses (FedKSeed's protocol)."""
    held_out: int | None = Field(default=None, ge=1, le=10**7)
    """Records held out for evaluation; if not set, 100, or a fifth of fewer than 500."""
    calibration: int | None = Field(default=None, ge=1, le=10**6)
    """Records set aside as the server's own sample for compression and parity checks; if not set, 64, a tenth of fewer
    than 640, and none of fewer than 80: then the sample is of records that are trained on."""
    prompt: Literal["auto", "chat", "alpaca", "fedkseed"] = "auto"
    """Prompt template; `auto` takes the tokenizer's chat template if it has one, else Alpaca's."""
    max_tokens: int = Field(default=256, ge=8, le=1 << 20)
    """Greatest length of prompt and response together."""


class SplitSection(Section):
    """How records are spread over the devices."""

    kind: Literal["auto", "dirichlet", "iid", "quantity"] = "auto"
    """Dirichlet over categories, identically distributed, or Dirichlet over quantities; `auto` is the first where there
    are categories, else the last, and identically distributed where the records are too few for that."""
    alpha: float = Field(default=0.5, ge=1e-4, le=1e6)
    """Concentration; smaller is more uneven."""
    minimum: int | None = Field(default=None, ge=1, le=10**6)
    """Least number of records a device holds; if not set, 4, or fewer where the devices are given and need it."""


class FederationSection(Section):
    """How wide and how long."""

    devices: int | None = Field(default=None, ge=1, le=10**6)
    """Number of devices; if not set, 20, or as many as hold split.minimum records each."""
    participation: float = Field(default=0.1, gt=0, le=1)
    """Share of the devices asked in a round."""
    rounds: int = Field(default=20, ge=1, le=10**6)
    """Number of rounds (checkpoint intervals for a single device)."""
    over_selection: float = Field(default=0.0, ge=0, le=100)
    """Devices asked beyond those that are needed, as a share of them; the first replies count."""
    minimum_replies: int = Field(default=1, ge=1, le=10**6)
    """Usable replies without which a round changes nothing."""
    buffer: int | None = Field(default=None, ge=1, le=10**6)
    """Replies after which the server steps, to whichever round they are (FedBuff); `participation` is under way."""
    staleness_power: float = Field(default=0.5, ge=0, le=10)
    """With a buffer: a reply that is t steps late counts (1 + t) to minus this power; 0 for no discount."""
    max_staleness: int = Field(default=8, ge=0, le=8)
    """With a buffer: steps that a reply may be late by; those that are later are refused."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes that devices of a round train in, each with a model of its own; 0 takes what cores and memory allow."""


class FleetSection(Section):
    """How the devices of a simulation behave; each draw follows from the seed."""

    failing: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a device that is asked does not answer."""
    joining: float = Field(default=0.0, ge=0, le=1)
    """Share of the devices that join at a round drawn from the second to the last."""
    seconds: float = Field(default=1.0, gt=0, le=1e9)
    """Simulated seconds of a local step of a device of middling speed."""
    spread: float = Field(default=0.0, ge=0, le=10)
    """How different the devices' speeds are: standard deviation of their logarithm."""
    jitter: float = Field(default=0.0, ge=0, le=10)
    """How different a device's rounds are, likewise."""
    deadline: float | None = Field(default=None, gt=0, le=1e12)
    """Simulated seconds after which a round takes no reply; none if not set."""


class PruningSection(Section):
    """How a model is pruned in structures, by the stage `prune` and by `edgetune prune`."""

    ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the weights of heads and channels to remove."""
    width: Literal["uniform", "per_layer", "modules"] = "uniform"
    """uniform (loads everywhere), per_layer, or modules (whole ones go)."""
    importance: Literal["activation", "first", "vector", "second", "mixed", "magnitude", "random"] = (
        "activation"
    )
    """What a head or channel is worth; the second to the fifth need gradients."""
    compensate: bool = True
    """Restore what reads the rest, by least squares."""
    recover: Literal["none", "distil", "lora"] = "none"
    """What is trained afterwards towards the dense model: nothing, all weights, or adapters that are merged."""
    steps: int = Field(default=200, ge=1, le=10**6)
    """Batches of 16 records of the recovery."""
    learning_rate: float | None = Field(default=None, gt=0, le=1e3)
    """Of the recovery; its own if not set."""
    spare: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """First and last layers that a width by layer leaves alone."""


class CompressionSection(Section):
    """How the tuned model is compressed."""

    name: str = "gptaq"
    """A name listed by `edgetune methods`."""
    grid: Grid | None = None
    """GGUF block type of the linear layers, from 2.6 to 8.5 bits a weight; if not set the method's own: Q4_0, and
    F16 where it only prunes. Of folders (`edgetune compress --format`) int4-g128: bits 2, 3, 4 or 8, groups g32, g64,
    g128 or row, uint4-... with zero points."""
    size: str | None = None
    """Size of the whole file, 1.2GB or in bits a weight 4.5bpw: every matrix gets the grid that lets all lose least."""
    sparsity: str | float | None = None
    """Share of the weights that are pruned, or 2:4 for two of every four; the method's own, 0.5, if not set."""
    swaps: int | None = Field(default=None, ge=0, le=10**6)
    """Exchanges of pruned weights for kept ones, in every row at most; the method's own if not set."""
    polish: int | None = Field(default=None, ge=0, le=10**6)
    """Steps of conjugate gradients on the kept weights; the method's own if not set."""
    aim_dense: bool | None = None
    """Whether layers are solved for the outputs of the uncompressed model, which takes twice the passes; the method's
    own if not set."""
    static_order: bool | None = None
    """Whether columns are solved from the heaviest input to the lightest on scales fitted beforehand; the method's own
    if not set."""
    calibration: str | None = None
    """A text or records to calibrate on: a .txt file is packed to full length, of records prompt and response count; if
    not set, the server's own sample in a run, and else the records that are not held out; pruning takes it too."""
    calibration_tokens: int | None = Field(default=None, ge=1, le=10**9)
    """Tokens to calibrate on; if not set, 16,384, or four times the widest input of a layer if that is more."""


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
    metric: Literal["auto", "rouge_l", "exact_match", "accuracy", "token_f1"] = "auto"
    """What scores answers beside Rouge-L; `auto` is accuracy where responses are a few labels, else exact_match where
    `extract` is set, else nothing."""
    extract: str | None = None
    """What counts in an answer and in the expected one: first_line, last_number, letter, whole or regex:PATTERN."""
    samples: int = Field(default=4, ge=0, le=10**4)
    """Held-out prompts whose answers are shown."""
