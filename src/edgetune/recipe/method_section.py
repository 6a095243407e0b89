"""The recipe section that names a tuning method and what differs from its published value."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=1_000_000)]
"""A number of steps, records or tokens; what is beyond any use is refused at once."""
Small = Annotated[int, Field(ge=0, le=4096)]
"""A size that memory grows with."""


AUTO: Literal["auto"] = "auto"
Found = Annotated[float | Literal["auto"], BeforeValidator(lambda given: AUTO if given is None else given)]
"""A number, or `auto`, which logs of older versions say by null."""


class Section(BaseModel):
    """A group of settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MethodSection(Section):
    """Which tuning method, and what differs from its published defaults."""

    name: str = "fedkseed"
    """A name listed by `edgetune methods`, or on the command line a .py file that defines METHOD."""
    target: str | None = None
    """What is tuned: full (all weights), linear (matrices of linear layers), writers (those that write into the
    residual stream, and the head), lora, adapter (a bottleneck), prefix or bitfit (biases, else norms)."""
    head: bool | None = None
    """Whether writers include the head; without it a pool's ledger is an adapter for llama.cpp without loss."""
    tied_head: bool | None = None
    """Whether linear layers include a head that is the embedding table (false); without it likewise."""
    objective: str | None = None
    """loss, or for forward-only methods token_f1 or accuracy of greedy answers (both raised; eps must be larger)."""
    answer_tokens: Count | None = None
    """Length of the answers that token_f1 and accuracy score (32)."""
    learning_rate: Found = AUTO
    """Learning rate, at least 0; `auto` is found by a short range test, once a model, method and data."""
    optimiser: str | None = None
    """sgd, momentum or adam of coefficients (forward-only), adamw or sgd (back-propagation)."""
    weight_decay: float | None = None
    """Decoupled weight decay of adamw."""
    proximal: float | None = None
    """mu of FedProx, which holds a device near the model that its round began with (sgd, adamw); 0 is FedAvg."""
    momentum: float | None = None
    """Momentum, or Adam's first decay, in [0, 1)."""
    history: Count | None = None
    """Slopes that momentum or adam remember of fresh seeds (64); a pool remembers all its directions."""
    estimate: str | None = None
    """two_point or one_sided slopes of forward-only methods; standardised, one-sided and divided by the spread of the
    losses; by_record, a direction a record; clipped or clipped_vector, which hide records; skip_gradient of
    writers, or skip_slopes, the same along a whole pool; backprop, or backprop_slopes along a whole pool."""
    recompute: bool | None = None
    """Whether backprop_slopes compute blocks again in the backward pass and keep but their inputs (true)."""
    standardised: bool | None = None
    """Whether slopes of by_record are divided by their spread."""
    eps: Found = AUTO
    """Perturbation radius of forward-only methods; `auto` is found as the learning rate is."""
    directions_per_step: Small | None = None
    """Directions whose slopes a forward-only step averages; two_point costs 2 n forward passes, one_sided and
    standardised n + 1, by_record 2 for as many directions as a batch has records."""
    draw: str | None = None
    """fresh directions every step, discriminative (for paced servers: those like the last step), pool, of which only
    coefficients are sent and which needs `pool`, weighted (by amplitudes, see fedkseed_pro), or intervals (fresh, in a
    subspace that stays for some steps)."""
    directions: str | None = None
    """rademacher, gaussian, hadamard, rank_one, rank_one_pool, or of low rank: lozo (2), subzero (16)."""
    pool: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    """Number of directions of a pool."""
    interval: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Steps of a device for which the subspace of lozo and subzero directions stays (50)."""
    candidates: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Directions that are drawn for each that discriminative sampling keeps (10)."""
    keep_last: bool | None = None
    """Whether a paced server tells devices which terms its last step took; discriminative sampling sets it."""
    corrected: bool | None = None
    """Divide a step by K times the probability of its direction: unbiased, where a pool's are drawn by amplitude."""
    rank: Small | None = None
    """Rank of LoRA."""
    alpha: float | None = None
    """Scaling numerator of LoRA."""
    freeze_a: bool | None = None
    """Tune only the second factor of LoRA; the first stays as the seed made it, and nobody sends it."""
    initialiser: str | None = None
    """Where LoRA's factors begin: default (A the seed's, B zero), gaussian, orthogonal, pissa, olora, or from the
    server's own sample eva, lora_ga; all but the first are computed once, at the server, and sent."""
    layer_scale: str | dict[str, float] | None = None
    """parameter_norm, or a table {part of a parameter name = c}: perturb by z / c, move by c z (all weights only)."""
    prefix_tokens: Small | None = None
    """Length of a trained prefix."""
    reduction: Small | None = None
    """Width of the model over the width of a bottleneck adapter."""
    layer_budget: Count | None = None
    """What a device can pay for the layers that it trains: 1 is the top layer alone, all layers are everything."""
    budget_spread: Annotated[int, Field(ge=0, le=65_536)] | None = None
    """How much more than layer_budget the best-equipped devices can pay."""
    consistency: float | None = None
    """Price of devices training different layers: 0 lets each choose for itself, a large one makes all choose alike."""
    survey_batches: Count | None = None
    """Batches that a device measures its layers by before a round."""
    keep_ratio: float | None = None
    """Share of the layers whose prompts are trained, in (0, 1]; 0 lets devices find it from the Hessian's spectrum."""
    keep_rule: str | None = None
    """How devices find that share: density (as FedPepTAO's code) or gap (above 4 Lipschitz constants, as its paper)."""
    spectrum_steps: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Products with the Hessian for a spectrum, each about 4 forward passes (50)."""
    local_steps: Count | None = None
    """Steps a device takes in a round."""
    schedule: str | None = None
    """constant, linear or cosine: how the learning rate decays over all rounds' steps."""
    schedule_steps: Annotated[int, Field(ge=0, le=10**12)] | None = None
    """Step at which a decay reaches 0; federation.rounds x method.local_steps if not set."""
    warmup: Annotated[int, Field(ge=0, le=10**12)] | None = None
    """Steps over which the learning rate rises from 0."""
    batch_size: Annotated[int, Field(ge=0, le=65_536)] | None = None
    """Records a step; a device that holds fewer takes all of them."""
    sampling: str | None = None
    """shuffled, or poisson: every record is in a batch by chance, as clipped estimates need it."""
    clip: float | None = None
    """Bound of what a record, or a device of private_mean, adds to a sum."""
    epsilon: float | None = None
    """Privacy that all steps of a run may spend together; the noise is found for it. 0: noise_multiplier says it."""
    delta: float | None = None
    """Probability with which epsilon may not hold (1e-5)."""
    noise_multiplier: float | None = None
    """Standard deviation of the noise of a sum, in units of clip; with an epsilon above 0 it must suffice for that."""
    micro_batch: Annotated[int, Field(ge=0, le=65_536)] | None = None
    """Records a forward pass; a step of more of them is accumulated. 0: all of a step's records at once."""
    aggregate: str | None = None
    """How the server combines what devices send: mean, private_mean, which hides devices, paced (see fwdllm) or
    controlled (momentum and control variates); for LoRA also ffa (A frozen), flora (products stacked into the base) or
    fedex (what the mean lacks, too)."""
    variance_threshold: float | None = None
    """Variance of the gathered mean at which a paced server takes its step; 0 takes half of the first round's."""
    keep_slopes: float | None = None
    """Share of the gathered slopes that a paced server steps along, the steepest of them, in (0, 1]."""
    most_slopes: Count | None = None
    """Slopes after which a paced server takes its step in any case."""
    server: str | None = None
    """none, momentum (FedAvgM) or adam (FedAdam): the step that the server takes with the combined change."""
    server_rate: float | None = None
    """Learning rate of the server's momentum (1) or adam (0.01)."""
    server_momentum: float | None = None
    """Momentum of the server, or its Adam's first decay, in [0, 1)."""
    server_decay: float | None = None
    """What a controlled server's rate is multiplied by from round to round (0.99)."""
    control: bool | None = None
    """Whether a controlled server corrects its momentum for who was asked, by what each device last sent."""
    server_eps: float | None = None
    """Added to the root in the server's adam (0.001); changes far below it are scaled alike."""
    up_values: str | None = None
    """float32 or float16: how a device's coefficients are written."""
    down_values: str | None = None
    """float32 or float16: how a pool's coefficients are written; the server's own are rounded so too. Of fresh
    directions float32, or as slopes come up."""
    by_examples: bool | None = None
    """Weight devices by their number of examples."""
