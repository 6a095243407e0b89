"""What happens in a run, as the kinds of lines of its log (`core.event_log`).

The report and the summary are functions of this file. A line is `{"event": kind, "time": unix seconds, ...fields}`;
the kinds and their fields are the dataclasses below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Root of all events; `kind` names the line."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The resolved configuration and the exact command, before anything else."""

    kind: ClassVar[str] = "run_started"
    command: str
    config: dict[str, Any]
    method: str
    base_digest: str
    seed: int
    versions: dict[str, str]
    weights: int
    """Number of weights of the base model."""
    device: str = "cpu"
    """Where the model computes."""
    threads: int = 0
    """CPU threads of this process; 0 in older logs."""
    licence: str = ""
    """Of the base model, as its own files name it; empty if they do not."""


@dataclass(frozen=True, slots=True)
class DataPrepared(Event):
    """What became of the records: where they went, and what was found in them."""

    kind: ClassVar[str] = "data"
    prompt: str
    """Name of the prompt template."""
    trained: int
    """Records on the devices."""
    held_out: int
    calibration: int
    copies: int
    """Records left out because their text is held out, or in the server's own sample."""
    quoted: int
    """Records that hold the text of a control token; it is encoded as text, not as the token."""
    framed: int
    """Responses that the chat template would have rewritten; they are trained on as they are."""
    own_ends: int
    """Responses that brought an end token of their own; each ends with one, from the template."""
    unknown: int
    """Records with characters that the tokenizer does not know."""
    characters: str
    """The first few of these characters."""
    ends: list[int]
    """Ids that end an answer, the one that is trained on first; empty if answers end by their length only."""
    words: str
    """What Rouge-L counts as a word in the held-out responses."""
    cut: int = 0
    """Records of which not all fits into data.max_tokens."""
    forgotten: int = 0
    """Conversations whose oldest exchanges were left out, so that the rest fits."""
    notes: list[str] = field(default_factory=list)
    """Where the records went, and what was done that nobody asked for."""


@dataclass(frozen=True, slots=True)
class RunResumed(Event):
    """A killed run went on after its last complete round."""

    kind: ClassVar[str] = "run_resumed"
    round: int


@dataclass(frozen=True, slots=True)
class RoundFinished(Event):
    """One federated round (or one checkpoint interval of a single device)."""

    kind: ClassVar[str] = "round"
    round: int
    """Number of the round, from 1."""
    devices: list[int]
    train_loss: float
    """Mean loss the devices saw while stepping, nats per response token; NaN where it is nobody's to know."""
    loss: float | None
    """Held-out loss after the round, if it was evaluated."""
    payload_up_bytes: list[int]
    """`len(payload)` of what each device sent."""
    payload_down_bytes: list[int]
    """`len(payload)` of what each device received."""
    dropped: int
    """Slopes (or gradients) dropped because a loss was NaN or infinite."""
    digest: str
    """Digest of the server's state after the round."""
    seconds: float
    peak_memory_bytes: int
    rouge_l: float | None = None
    refused: list[int] = field(default_factory=list)
    """Devices whose reply was left out."""
    reasons: list[str] = field(default_factory=list)
    """Why, in the order of `refused`."""
    realised: float | None = None
    """Part of the whole update since the base that half-precision weights show; None in float32."""
    unanswered: dict[str, int] = field(default_factory=dict)
    """Devices that were asked and did not answer in time, counted by why."""
    simulated_seconds: float | None = None
    """What the round would have taken a fleet of the recipe's speeds; None if it says nothing of them."""
    void: bool = False
    """Whether fewer replies could be used than the recipe wants, so that the state stayed."""
    processes: int = 1
    """Processes that devices answered in; `peak_memory_bytes` is the sum of their peaks, shared pages in each."""
    aggregation_residual: float | None = None
    """Frobenius norm of what the round's change of the weights lacks of the mean of the devices'; LoRA only."""
    layers: dict[str, list[int]] = field(default_factory=dict)
    """By device, the layers that were chosen for it, by depth from 0; empty where every device trains all."""
    staleness: list[int] = field(default_factory=list)
    """Server steps that each reply that counted was late by, in the order of devices; empty where rounds wait for all
    of their own."""
    under_way: int = 0
    """Devices whose replies were still to come when the round closed, and may count in a later one."""


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """A run that diverged went back to its best round, and goes on to its later stages with that."""

    kind: ClassVar[str] = "stopped"
    best: int
    """The round it went back to."""
    best_loss: float
    """Held-out loss after it."""
    round: int
    """The round that was the last."""
    loss: float
    """Held-out loss after that; NaN if it had none."""
    why: str


@dataclass(frozen=True, slots=True)
class Precision(Event):
    """What the type of the weights leaves of a perturbation, measured before the first step."""

    kind: ClassVar[str] = "precision"
    dtype: str
    """float32, float16 or bfloat16."""
    eps: float
    perturbation: float
    """Realised ratio of the perturbation: 1 is faithful, below 0.5 a run is refused unless told to go on."""


@dataclass(frozen=True, slots=True)
class RateFound(Event):
    """Learning rate and radius of a run that names none, as it goes on with them."""

    kind: ClassVar[str] = "rate"
    learning_rate: float
    eps: float | None
    """Perturbation radius; None where nothing is perturbed."""
    origin: str
    """test, cache or log: found now, found before for the same run, or taken from the first start of this run."""
    seconds: float
    """That finding them took, whenever that was."""
    records: int
    """Records that were passed through the model for it."""
    clear: bool
    """Whether differences of the loss at this radius are clear of rounding noise."""


@dataclass(frozen=True, slots=True)
class Privacy(Event):
    """What all rounds of a private run spend, found before the first step; a run that stops early has spent less."""

    kind: ClassVar[str] = "privacy"
    epsilon: float
    """Of the record (or device) that is heard of most; neighbours have one more or less. Infinite without noise."""
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise of a sum, in units of `clip`."""
    clip: float
    """Bound of what one record, or device, adds to a sum."""
    releases: int
    """Noisy sums that the most heard of takes part in."""
    sampling_rate: float
    """Greatest probability that it is in one of them."""
    unit: str
    """record or device."""


@dataclass(frozen=True, slots=True)
class LayerCompressed(Event):
    """One matrix was put on its grid, or pruned."""

    kind: ClassVar[str] = "layer"
    name: str
    grid: str
    error: float
    """tr(dW H dW^T) / tr(W H W^T) of the solver."""
    rounding_error: float
    """The same for rounding to nearest."""
    damping: float
    """Damping used, as a fraction of the mean diagonal."""
    fallback: bool
    """True if the factorisation failed and the matrix was only rounded."""
    sparsity: float = 0.0
    """Share of the weights that are exactly 0, as stored."""


@dataclass(frozen=True, slots=True)
class StageFinished(Event):
    """One row of the final table."""

    kind: ClassVar[str] = "stage"
    name: str
    """base, pruned, tuned, rounded, compressed or llama.cpp."""
    loss: float
    perplexity: float
    rouge_l: float
    size_bytes: int
    peak_memory_bytes: int
    seconds: float
    base_style_loss: float | None = None
    """Loss on what the base was pretrained on, to see forgetting; None where there is no such data."""
    records: int | None = None
    """Held-out records behind `loss` and `rouge_l`."""
    metric: str | None = None
    """What scored the answers beside Rouge-L; None if nothing did."""
    score: float | None = None
    """The mean score, 0 to 100."""
    kl_response: float | None = None
    """Mean KL of the predictions of response tokens to those of the model before compression, nats; None where there is
    nothing to compare with."""
    kl: float | None = None
    """The same of the predictions behind every token of the records."""
    kl_rare: float | None = None
    """99.9 % quantile of the latter."""
    top_1: float | None = None
    """Share of all tokens behind which both have the same likeliest next one, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Sample(Event):
    """One held-out prompt answered by one stage."""

    kind: ClassVar[str] = "sample"
    stage: str
    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True, slots=True)
class Traffic(Event):
    """Bytes per device and round, and what the alternatives would have sent for the same model."""

    kind: ClassVar[str] = "traffic"
    rounds: int
    devices_per_round: int
    payload_up_bytes: int
    """Largest payload one device sent in one round."""
    payload_down_bytes: int
    total_bytes: int
    """Everything sent in the run, both ways."""
    alternatives: dict[str, dict[str, int]] = field(default_factory=dict)
    """Name to {"payload_up_bytes", "payload_down_bytes"}, each from a payload really encoded."""


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The run stopped with an error."""

    kind: ClassVar[str] = "failed"
    what: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """The last line of a complete run."""

    kind: ClassVar[str] = "run_finished"
    seconds: float


Listener = Callable[[Event], None]
"""Whoever wants to see events as they happen: the log, a progress display, a test."""


def ignore(event: Event) -> None:
    """Listen to nothing."""
