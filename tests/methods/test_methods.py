"""Methods are values: found by file name, refused where parts do not fit, changed by options."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest

from edgetune.aggregate import Controlled, FedEx, Ffa, Mean, Paced, ServerAdam, ServerMomentum
from edgetune.core.errors import ConfigError
from edgetune.core.part import GRADIENTS, Part
from edgetune.data.sampling import Poisson
from edgetune.directions import Gaussian, Hadamard, Lozo, Rademacher
from edgetune.directions.discriminative import Discriminative
from edgetune.directions.draw import Fresh, Pool
from edgetune.directions.intervals import Intervals
from edgetune.directions.weighted import WeightedPool
from edgetune.estimators import Backprop, BackpropSlopes, ByRecord, OneSided, Standardised, TwoPoint
from edgetune.measure.objective import Answers
from edgetune.measure.scores import exact_match, token_f1
from edgetune.methods.catalogue import compression_method, compression_names, tuning_method, tuning_names
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import OPTIONS, defaults, with_options
from edgetune.survey import Gap, GradientNorms, PromptLayers
from edgetune.tune import Adapter, ByNorm, ByTable, FullProjected, LinearLayers, Lora, Prefix, Writers
from edgetune.updates import Adam, AdamW, Constant, Cosine, Linear, Momentum, Sgd
from edgetune.wire import Changed, Coefficients, Float32, Log, Table, Tensors

KSEED, MEZO, LORA = (tuning_method(name) for name in ("fedkseed", "mezo", "lora"))
DPZERO, FZOO, GRZO = (tuning_method(name) for name in ("dpzero", "fzoo", "grzo"))
MEZO_LORA, PREFIX = tuning_method("mezo_lora"), tuning_method("mezo_prefix")
LOZO, SKIPGRAD, SUBSPACE = (tuning_method(name) for name in ("lozo", "skipgrad", "fedsubspace"))
FWDLLM, SELFT = tuning_method("fwdllm"), tuning_method("fedselft")
CHOOSING = with_options(FWDLLM, {"draw": "discriminative"})
DECAY = with_options(KSEED, {"schedule": "cosine", "schedule_steps": 200})
SCORED = with_options(MEZO, {"objective": "accuracy"})
PRO = tuning_method("fedkseed_pro")
PEPTAO = tuning_method("fedpeptao")
SIGNS = with_options(KSEED, {"directions": "rademacher"})
HEAVY, ADAM = with_options(MEZO, {"optimiser": "momentum"}), with_options(KSEED, {"optimiser": "adam"})


class Fixed(Poisson):
    """A way to draw batches of somebody else's."""

    name = "fixed"


class Uniform(Mean):
    """An aggregator of somebody else's."""

    name = "uniform"


@pytest.mark.parametrize("name", tuning_names())
def test_every_tuning_method_bears_its_files_name_and_explains_itself(name: str) -> None:
    method = tuning_method(name)
    assert method.name == name
    cards = (method.summary, method.travels, method.memory, method.source)
    assert all(len(text.strip()) > 10 for text in cards)
    method.check()


@pytest.mark.parametrize("name", compression_names())
def test_every_compression_method_bears_its_files_name(name: str) -> None:
    assert compression_method(name).name == name


def test_the_published_methods_are_there() -> None:
    assert {"dp_aggzo", "dpzero", "fedkseed", "lora", "mezo", "mezo_lora", "mezo_prefix", "zo_sgd"} <= set(
        tuning_names()
    )
    assert {"optq", "rtn"} <= set(compression_names())


def test_mezo_on_adapters_has_the_published_defaults() -> None:
    for method, target, lr, eps in (
        (MEZO_LORA, Lora(rank=8, alpha=16.0), 1e-4, 1e-2),
        (PREFIX, Prefix(tokens=5), 1e-2, 1e-1),
    ):
        assert (method.target, method.local, method.estimate) == (target, Sgd(lr), TwoPoint(eps))
        assert (method.directions, method.batch_size) == (MEZO.directions, 16)


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fedkseed'"):
        tuning_method("fedkseeed")
    with pytest.raises(ConfigError, match=r"known: .*optq"):
        compression_method("zzz")


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        (KSEED, {"local_steps": 0}, "local step"),
        (KSEED, {"batch_size": 0}, "record"),
        (MEZO, {"directions": None}, "needs directions"),
        (MEZO, {"local": AdamW(1e-3)}, "adamw needs dense gradients"),
        (MEZO, {"up": Tensors()}, "named tensors needs dense gradients"),
        (LORA, {"target": FullProjected(keep_direction=True)}, "all weights needs directions"),
        (LORA, {"up": Coefficients()}, "needs slopes"),
        (LORA, {"directions": Fresh(Rademacher())}, "fresh directions needs slopes"),
        (replace(MEZO_LORA, target=Lora()), {"estimate": Backprop()}, "needs slopes"),
        (MEZO, {"down": Table()}, "needs a pool of directions"),
        (KSEED, {"down": Log()}, "log of steps needs fresh directions"),
        (KSEED, {"survey": GradientNorms()}, "needs dense gradients"),
        (LORA, {"down": Changed()}, "needs replies that hold the layers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    method: TuningMethod, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(method, **changes)


@pytest.mark.parametrize(
    ("method", "name", "value", "changed"),
    [
        (KSEED, "learning_rate", 0.5, {"local": Sgd(0.5)}),
        (LORA, "learning_rate", 0.5, {"local": AdamW(0.5)}),
        (KSEED, "eps", 0.5, {"estimate": TwoPoint(0.5)}),
        (KSEED, "pool", 64, {"directions": Pool(Hadamard(64), 64)}),
        (KSEED, "optimiser", "adam", {"local": Adam(3e-7)}),
        (MEZO, "optimiser", "momentum", {"local": Momentum(1e-6, history=64)}),
        (LORA, "optimiser", "sgd", {"local": Sgd(3e-4)}),
        (HEAVY, "momentum", 0.5, {"local": Momentum(1e-6, 0.5, 64)}),
        (ADAM, "momentum", 0.5, {"local": Adam(3e-7, 0.5)}),
        (HEAVY, "history", 8, {"local": Momentum(1e-6, history=8)}),
        (KSEED, "estimate", "one_sided", {"estimate": OneSided(5e-4)}),
        (KSEED, "directions_per_step", 4, {"estimate": TwoPoint(5e-4, 4)}),
        (FZOO, "estimate", "one_sided", {"estimate": OneSided(1e-3, 8)}),
        (FZOO, "directions_per_step", 4, {"estimate": Standardised(1e-3, 4)}),
        (GRZO, "standardised", False, {"estimate": ByRecord(1e-3, 16)}),
        (LORA, "micro_batch", 4, {"micro_batch": 4}),
        (KSEED, "directions", "gaussian", {"directions": Pool(Gaussian(), 4096)}),
        (MEZO, "directions", "gaussian", {"directions": Fresh(Gaussian())}),
        (LORA, "rank", 2, {"target": Lora(2, 16.0)}),
        (LORA, "alpha", 2, {"target": Lora(8, 2.0)}),
        (LORA, "target", "full", {"target": FullProjected()}),
        (MEZO_LORA, "target", "adapter", {"target": Adapter()}),
        (replace(LORA, target=Adapter()), "reduction", 4, {"target": Adapter(4)}),
        (LORA, "initialiser", "pissa", {"target": Lora(8, 16.0, initialiser="pissa")}),
        (LORA, "freeze_a", True, {"target": Lora(8, 16.0, freeze_a=True)}),
        (LORA, "aggregate", "ffa", {"target": Lora(8, 16.0, freeze_a=True), "aggregate": Ffa()}),
        (LORA, "aggregate", "fedex", {"aggregate": FedEx()}),
        (SKIPGRAD, "head", False, {"target": Writers(head=False)}),
        (SKIPGRAD, "estimate", "backprop", {"estimate": Backprop()}),
        (SUBSPACE, "tied_head", True, {"target": LinearLayers(tied_head=True)}),
        (SUBSPACE, "recompute", False, {"estimate": BackpropSlopes(recompute=False)}),
        (DECAY, "schedule", "linear", {"schedule": Linear(200)}),
        (DECAY, "schedule_steps", 900, {"schedule": Cosine(900)}),
        (KSEED, "warmup", 7, {"schedule": Constant(7)}),
        (KSEED, "objective", "token_f1", {"objective": Answers(token_f1)}),
        (SCORED, "answer_tokens", 5, {"objective": Answers(exact_match, 5)}),
        (KSEED, "layer_scale", "parameter_norm", {"target": FullProjected(scaling=ByNorm())}),
        (KSEED, "layer_scale", {"mlp": 2}, {"target": FullProjected(scaling=ByTable((("mlp", 2.0),)))}),
        (PREFIX, "prefix_tokens", 3, {"target": Prefix(3)}),
        (MEZO_LORA, "rank", 2, {"target": Lora(2, 16.0)}),
        (KSEED, "local_steps", 3, {"local_steps": 3}),
        (KSEED, "batch_size", 3, {"batch_size": 3}),
        (DPZERO, "clip", 3.0, {"estimate": replace(DPZERO.estimate, clip=3.0)}),
        (DPZERO, "epsilon", 3.0, {"estimate": replace(DPZERO.estimate, epsilon=3.0)}),
        (DPZERO, "delta", 1e-6, {"estimate": replace(DPZERO.estimate, delta=1e-6)}),
        (DPZERO, "noise_multiplier", 3.0, {"estimate": replace(DPZERO.estimate, noise_multiplier=3.0)}),
        (replace(DPZERO, sampling=Fixed()), "sampling", "poisson", {"sampling": Poisson()}),
        (SELFT, "layer_budget", 4, {"survey": GradientNorms(4)}),
        (SELFT, "budget_spread", 3, {"survey": GradientNorms(2, spread=3)}),
        (SELFT, "consistency", 0.5, {"survey": GradientNorms(2, consistency=0.5)}),
        (SELFT, "survey_batches", 3, {"survey": GradientNorms(2, batches=3)}),
        (KSEED, "by_examples", False, {"aggregate": Mean(by_examples=False)}),
        (FWDLLM, "variance_threshold", 0.5, {"aggregate": Paced(1e-2, 0.5)}),
        (FWDLLM, "most_slopes", 9, {"aggregate": Paced(1e-2, 0.0, 9)}),
        (FWDLLM, "keep_slopes", 0.1, {"aggregate": Paced(1e-2, 0.0, keep=0.1)}),
        (FWDLLM, "keep_last", True, {"aggregate": Paced(1e-2, 0.0, keep_last=True)}),
        (CHOOSING, "candidates", 7, {"directions": Discriminative(Gaussian(), candidates=7)}),
        (LOZO, "interval", 7, {"directions": Intervals(Lozo(), interval=7)}),
        (LOZO, "draw", "fresh", {"directions": Fresh(Lozo())}),
        (KSEED, "up_values", "float32", {"up": Coefficients(Float32())}),
        (KSEED, "down_values", "float32", {"down": Table(Float32())}),
        (LORA, "server", "momentum", {"server": ServerMomentum()}),
        (LORA, "proximal", 0.1, {"local": AdamW(3e-4, proximal=0.1)}),
        (KSEED, "proximal", 0.1, {"local": Sgd(3e-7, proximal=0.1)}),
        (replace(LORA, server=ServerMomentum()), "server_rate", 2, {"server": ServerMomentum(2.0)}),
        (replace(KSEED, server=ServerAdam()), "server_momentum", 0, {"server": ServerAdam(momentum=0.0)}),
        (replace(KSEED, server=ServerAdam()), "server_eps", 2, {"server": ServerAdam(eps=2.0)}),
        (LORA, "aggregate", "controlled", {"aggregate": Controlled()}),
        (PEPTAO, "server_decay", 0.5, {"aggregate": Controlled(decay=0.5)}),
        (PEPTAO, "control", False, {"aggregate": Controlled(control=False)}),
        (PEPTAO, "keep_ratio", 0.5, {"survey": PromptLayers(ratio=0.5)}),
        (PEPTAO, "keep_rule", "gap", {"survey": PromptLayers(keep=Gap())}),
        (PEPTAO, "spectrum_steps", 9, {"survey": PromptLayers(steps=9)}),
        (LORA, "weight_decay", 0.1, {"local": AdamW(3e-4, weight_decay=0.1)}),
        (replace(MEZO, aggregate=Uniform()), "aggregate", "mean", {"aggregate": Mean()}),
        (PRO, "corrected", True, {"directions": WeightedPool(Hadamard(4096), 4096, corrected=True)}),
        (SIGNS, "draw", "fresh", {"directions": Fresh(Rademacher()), "down": Log()}),
    ],
)
def test_an_option_replaces_its_part(
    method: TuningMethod, name: str, value: object, changed: dict[str, Any]
) -> None:
    variant = with_options(method, {name: value})
    assert variant == replace(method, **changed)
    assert variant.digest != method.digest


def test_every_option_has_a_case_above() -> None:
    marks = test_an_option_replaces_its_part.pytestmark
    assert {case[1] for case in marks[0].args[1]} == set(OPTIONS)


def test_an_option_left_out_changes_nothing() -> None:
    assert with_options(KSEED, dict.fromkeys(OPTIONS)) == KSEED


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (KSEED, {"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        (KSEED, {"zzz": 1.0}, "no method option 'zzz'"),
        (LORA, {"eps": 1.0}, "lora has no eps: that is a setting of two_point and one_sided"),
        (MEZO, {"pool": 8}, "no pool"),
        (MEZO, {"draw": "pool"}, "a pool in place of fresh directions needs pool"),
        (LORA, {"draw": "fresh"}, "no draw: that is a setting of fresh and pool"),
        (KSEED, {"draw": "fresh"}, "hadamard directions form a pool"),
        (MEZO, {"down_values": "float16"}, "a log of steps needs one factor of a round"),
        (LORA, {"pool": 8}, "no pool"),
        (LORA, {"directions": "gaussian"}, "no directions"),
        (MEZO, {"directions": "hadamard"}, "form a pool"),
        (KSEED, {"directions": "gausian"}, "did you mean 'gaussian'"),
        (MEZO, {"interval": 8}, "no interval"),
        (LOZO, {"interval": 0}, "1 to 1,048,576 steps"),
        (LOZO, {"directions": "gaussian"}, "no subspace"),
        (MEZO, {"draw": "intervals"}, "no subspace"),
        (KSEED, {"rank": 8}, "no rank"),
        (KSEED, {"alpha": 8}, "no alpha"),
        (KSEED, {"learning_rate": -1.0}, "learning rate"),
        (KSEED, {"eps": 0}, "eps"),
        (KSEED, {"pool": 0}, "pool"),
        (KSEED, {"optimiser": "adamw"}, "adamw needs dense"),
        (LORA, {"optimiser": "adam"}, "adam with a bounded history needs fresh directions"),
        (KSEED, {"optimiser": "adma"}, "did you mean 'adam'"),
        (KSEED, {"momentum": 0.5}, "no momentum"),
        (KSEED, {"history": 5}, "no history"),
        (HEAVY, {"history": 0}, "remembers all directions needs a pool"),
        (HEAVY, {"momentum": 1.0}, "below 1"),
        (ADAM, {"momentum": -0.1}, "below 1"),
        (ADAM, {"history": 5}, "bounded history needs fresh"),
        (HEAVY, {"history": -5}, "history cannot"),
        (LORA, {"prefix_tokens": 3}, "that is a setting of prefix"),
        (PREFIX, {"prefix_tokens": 0}, "prefix needs"),
        (PREFIX, {"rank": 3}, "no rank"),
        (KSEED, {"schedule": "cosin"}, "did you mean 'cosine'"),
        (KSEED, {"schedule_steps": 5}, "setting of linear and cosine"),
        (KSEED, {"schedule": "linear"}, "linear in place of constant needs schedule_steps"),
        (DECAY, {"schedule_steps": 0}, "cannot warm up"),
        (DECAY, {"warmup": 200}, "cannot warm up"),
        (KSEED, {"warmup": -1}, "cannot warm up"),
        (KSEED, {"objective": "tokenf1"}, "did you mean 'token_f1'"),
        (LORA, {"objective": "token_f1"}, "score of answers needs slopes"),
        (KSEED, {"answer_tokens": 5}, "no answer_tokens"),
        (SCORED, {"answer_tokens": 0}, "at least one token"),
        (KSEED, {"layer_scale": "parameter_nrm"}, "did you mean 'parameter_norm'"),
        (KSEED, {"layer_scale": {"mlp": 0}}, "between 1e-6"),
        (MEZO_LORA, {"layer_scale": "parameter_norm"}, "no layer_scale"),
        (KSEED, {"estimate": "onesided"}, "did you mean 'one_sided'"),
        (KSEED, {"directions_per_step": 0}, "at least one direction"),
        (FZOO, {"directions_per_step": 1}, "at least 2 directions"),
        (MEZO, {"estimate": "standardised"}, "at least 2 directions"),
        (KSEED, {"pool": 8, "directions_per_step": 9}, "more directions than the pool"),
        (LORA, {"estimate": "one_sided"}, "one_sided in place of backprop needs eps"),
        (KSEED, {"estimate": "jvp", "directions": "rank_one_pool"}, "jvp needs weights that the model holds"),
        (KSEED, {"estimate": "backprop"}, "a pool of directions needs slopes"),
        (KSEED, {"up_values": "float8"}, "no way to write values called 'float8'"),
        (LORA, {"directions_per_step": 2}, "no directions"),
        (KSEED, {"micro_batch": -1}, "micro-batch"),
        (LORA, {"rank": 0}, "rank"),
        (LORA, {"server": "adma"}, "did you mean 'adam'"),
        (LORA, {"server_rate": 1.0}, "setting of controlled and momentum and adam"),
        (LORA, {"server": "adam", "server_rate": 0}, "rate must be positive"),
        (LORA, {"server": "momentum", "server_momentum": 1}, "below 1"),
        (LORA, {"server": "adam", "server_eps": 0}, "eps must be positive"),
        (LORA, {"server": "adam", "aggregate": "fedex"}, "adam does not go with what a server adds"),
        (MEZO, {"server": "momentum"}, "momentum does not go with fresh"),
        (MEZO, {"proximal": 0.1}, "proximal term does not go with fresh"),
        (KSEED, {"proximal": -1}, "proximal must be"),
        (LORA, {"target": "bitfitt"}, "did you mean 'bitfit'"),
        (LORA, {"target": "adapter", "reduction": 0}, "no wider than its model"),
        (LORA, {"target": "bitfit", "aggregate": "fedex"}, "fedex needs pairs"),
        (LORA, {"aggregate": "flora", "freeze_a": True}, "flora needs pairs of low-rank factors"),
        (LORA, {"aggregate": "ffa", "freeze_a": False}, "ffa needs a first factor that stays"),
        (KSEED, {"aggregate": "ffa"}, "fedkseed has no freeze_a"),
        (MEZO_LORA, {"aggregate": "fedex"}, "fedex needs dense gradients"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    method: TuningMethod, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_options(method, options)


def test_a_step_of_n_directions_draws_n_keys() -> None:
    pooled = with_options(KSEED, {"pool": 8, "directions_per_step": 8, "local_steps": 5})
    keys = pooled.keys(1, 2, 3)
    assert [sorted(keys[first : first + 8]) for first in range(0, 40, 8)] == [list(range(8))] * 5
    assert keys == pooled.keys(1, 2, 3)
    fresh = with_options(MEZO, {"directions_per_step": 3, "local_steps": 5})
    assert len(set(fresh.keys(1, 2, 3))) == 15
    assert fresh.keys(1, 2, 3)[:5] == with_options(MEZO, {"local_steps": 5}).keys(1, 2, 3)
    assert LORA.keys(1, 2, 3) == [0] * LORA.local_steps


def test_a_steps_rate_is_a_function_of_round_and_step() -> None:
    method = with_options(KSEED, {"local_steps": 10, "schedule": "linear", "schedule_steps": 40})
    assert [method.rate(round, step) for round, step in ((1, 0), (1, 9), (3, 0), (4, 9), (5, 0))] == [
        1.0,
        31 / 40,
        0.5,
        1 / 40,
        0.0,
    ]


def test_the_digest_changes_with_every_setting() -> None:
    variants = [KSEED, MEZO, LORA, tuning_method("zo_sgd"), with_options(KSEED, {"directions": "rademacher"})]
    variants += [with_options(KSEED, {name: 3}) for name in ("local_steps", "batch_size", "eps", "pool")]
    variants += [with_options(LORA, {name: 3}) for name in ("rank", "alpha", "learning_rate")]
    variants += [replace(LORA, local=AdamW(3e-4, weight_decay=0.1)), replace(LORA, aggregate=Mean(False))]
    variants += [replace(LORA, local=Sgd(3e-4)), replace(MEZO, target=FullProjected(keep_direction=True))]
    variants += [with_options(MEZO, {"optimiser": "momentum", "history": size}) for size in (8, 9)]
    variants += [
        with_options(KSEED, {"schedule": name, "schedule_steps": 9}) for name in ("linear", "cosine")
    ]
    variants += [
        with_options(KSEED, {"layer_scale": scale}) for scale in ("parameter_norm", {"a": 2}, {"a": 3})
    ]
    variants += [with_options(KSEED, {"objective": name}) for name in ("token_f1", "accuracy")]
    variants += [replace(KSEED, objective=Answers(score)) for score in (lambda a, b: [], partial(token_f1))]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert replace(LORA, estimate=Backprop()).digest == LORA.digest


def test_methods_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KSEED.batch_size = 3


@pytest.mark.parametrize("name", tuning_names())
def test_the_defaults_of_a_method_are_options_that_give_it_back(name: str) -> None:
    method = tuning_method(name)
    assert with_options(method, defaults(method)) == method


def test_a_new_part_is_judged_by_what_it_declares() -> None:
    class Greedy(Sgd):
        """An optimiser that wants more than slopes."""

        __slots__ = ()

        @property
        def needs(self) -> frozenset[str]:
            return frozenset({GRADIENTS})

    assert replace(LORA, local=Greedy(1.0)).local == Greedy(1.0)
    with pytest.raises(ConfigError, match="sgd needs dense gradients"):
        replace(KSEED, local=Greedy(1.0))


def test_no_option_is_two_parts_of_one_method() -> None:
    for method in (KSEED, MEZO, LORA, PREFIX, SCORED, DECAY, ADAM):
        names = [name for part in method.parts.values() for name in part.options]
        assert len(names) == len(set(names))
        assert all(isinstance(part, Part) for part in method.parts.values())


def test_a_method_without_a_rate_is_refused_when_it_is_made() -> None:
    class Rateless(Sgd):
        """An optimiser of somebody else's that no recipe can set."""

        __slots__ = ()
        options: ClassVar[dict[str, str]] = {}

    with pytest.raises(ConfigError, match="must have a learning_rate"):
        replace(KSEED, local=Rateless(1.0))
