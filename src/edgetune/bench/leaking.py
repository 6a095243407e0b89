"""One audit of what a method's uploads tell, in a process of its own.

python -m edgetune.bench.leaking AUDIT.json
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetune.bench.leakage import QUIET, Audit, Way, variant
from edgetune.bench.reading import Scored, reader_of
from edgetune.bench.uploads import Sender, Upload
from edgetune.core.errors import DataError
from edgetune.core.keys import stream
from edgetune.data.encode import Example
from edgetune.models.embedded import EMBEDDED
from edgetune.privacy import Releases, noise_for
from edgetune.privacy.figures import found, ranked, recovered
from edgetune.privacy.identify import Candidates
from edgetune.privacy.learned_tokens import Reference
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe

Floats = npt.NDArray[np.float64]
TOKENS: dict[str, Callable[[Example], Sequence[int]]] = {
    "all": lambda one: one.input_ids,
    "said": lambda one: one.input_ids[one.response_start :],
}
"""Which tokens of a record are looked for: all of them, or those that it trains to say."""

LEARNED, READ = ("learned", "control"), ("read", "read-control")
"""The attack that learns and the one that reads, on what the batch sent and on what another one did."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the attacker has.

    Args:
        examples: the candidates first, then records that are none.
        uploads: float64 [records, numbers], what each of them alone would have sent.
        products: of all of these with each other.
        tokens: by kind, float64 [records, vocabulary], 1 where a record has a token.
        weights: float64 [records], what each counts in a batch.
        read: scores tokens from a change alone; None where no tensor or slope is of a vocabulary's rows.
    """

    examples: Sequence[Example]
    uploads: Floats
    products: Floats
    tokens: Mapping[str, Floats]
    weights: Floats
    read: Callable[[Upload], Scored] | None


def row_of(audit: Audit) -> dict[str, Any]:
    """Return what the attacks found, by records and steps."""
    return {"cases": [case for steps in audit.steps for case in _cases(audit, steps)]}


def _cases(audit: Audit, steps: int) -> list[dict[str, Any]]:
    noise = noise_of(audit, steps)
    hidden = {} if audit.epsilon is None else QUIET
    prepared = _prepared(audit, steps, {**audit.options, **hidden})
    sender = attacker = Sender(prepared, audit.seed)
    if noise:
        loud = _prepared(audit, steps, {**audit.options, **hidden, "noise_multiplier": noise})
        sender = Sender(loud, audit.seed)
    examples = drawn(prepared, audit, audit.references if steps == 1 else 0)
    known = _known(prepared, attacker, examples, audit.seed)
    cases = []
    for records in audit.batches:
        draw = stream(audit.seed, "leakage", "secrets", records)
        secrets = secrets_of(audit, records, draw)
        sent = [sender.send([examples[place] for place in secret]) for secret in secrets]
        each = [
            _identified(known, audit.candidates, one, secret, draw) | _tokens(known, one, other, secret, draw)
            for one, other, secret in zip(sent, sent[1:] + sent[:1], secrets, strict=True)
        ]
        told = {"bytes": sent[0].bytes, "numbers": sent[0].numbers, "noise": noise}
        cases.append({"records": records, "steps": steps, **told, "figures": _means(each)})
    return cases


def secrets_of(audit: Audit, records: int, draw: np.random.Generator) -> list[list[int]]:
    """Return the places of every secret batch among the candidates; no two batches share one."""
    order = draw.permutation(audit.candidates).tolist()
    count = min(audit.secrets, audit.candidates // records)
    return [order[place * records : (place + 1) * records] for place in range(count)]


def noise_of(audit: Audit, steps: int) -> float:
    """Return the noise multiplier with which a round of so many steps spends the audit's epsilon.

    A device's few records are in every step, so that chance protects nobody: q = 1.
    """
    part = variant(Way(audit.method, audit.options, epsilon=audit.epsilon)).protection
    if part is None or audit.epsilon is None:
        return 0.0
    return noise_for(audit.epsilon, [Releases(1.0, steps * part.releases)], part.delta)


def drawn(prepared: Prepared, audit: Audit, others: int) -> list[Example]:
    """Return the candidates of a draw and other records, no two of them alike.

    Raises:
        DataError: if there are not as many.
    """
    all_of = list(dict.fromkeys(one for share in prepared.devices.values() for one in share))
    wanted = audit.candidates + audit.references
    if len(all_of) < wanted:
        raise DataError(f"{len(all_of)} different records, where {wanted} are needed", where=audit.task)
    order = stream(audit.seed, "leakage", "records").permutation(len(all_of))[: audit.candidates + others]
    return [all_of[place] for place in order.tolist()]


def _prepared(audit: Audit, steps: int, options: Mapping[str, object]) -> Prepared:
    settings = {
        **audit.settings, "method.batch_size": max(audit.batches), "method.micro_batch": 0,
        **{f"method.{key}": value for key, value in options.items()}, "method.local_steps": steps,
    }  # fmt: skip
    texts = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    ]
    source = {} if audit.data is None or audit.model == EMBEDDED else {"data__source": audit.data}
    return prepare(
        load_recipe(None, texts, threads=1, model__source=audit.model, method__name=audit.method, **source)
    )


def _known(prepared: Prepared, attacker: Sender, examples: Sequence[Example], seed: int) -> Known:
    uploads = np.stack([attacker.send([one]).vector for one in examples])
    tokens = {}
    for kind, of in TOKENS.items():
        tokens[kind] = np.zeros((len(examples), prepared.backbone.model.config.get_text_config().vocab_size))
        for row, one in enumerate(examples):
            tokens[kind][row, list(of(one))] = 1
    counts = [1 if attacker.method.private else len(one.input_ids) - one.response_start for one in examples]
    weights = np.array(counts, np.float64)
    return Known(examples, uploads, uploads @ uploads.T, tokens, weights, reader_of(prepared, attacker, seed))


def _identified(
    known: Known, count: int, sent: Upload, secret: Sequence[int], draw: np.random.Generator
) -> dict[str, float]:
    candidates = Candidates(known.products[:count, :count], known.weights[:count])
    along = known.uploads[:count] @ sent.vector
    alike = found(candidates.cosines(along), secret, draw)
    fit = recovered(candidates.subset(along, len(secret)), secret)
    return {"top1": alike.top1, "recall": alike.recall, "auc": alike.auc, "fit": fit}


def _tokens(
    known: Known, sent: Upload, other: Upload, secret: Sequence[int], draw: np.random.Generator
) -> dict[str, float]:
    """Return what each attack recovers of a batch's tokens, in as many guesses as it has different ones.

    KIND.ATTACK: of all; KIND.ATTACK.rest: of those that the most frequent ones leave out. `control` and `read-control`
    do as `learned` and `read` do, and are shown what another batch sent.
    """
    figures, kept = {}, [place for place in range(len(known.examples)) if place not in set(secret)]
    gram, weights = known.products[np.ix_(kept, kept)], known.weights[kept]
    along = np.stack([(known.uploads @ one.vector)[kept] for one in (sent, other)])
    squares = np.array([float(one.vector @ one.vector) for one in (sent, other)])
    read = (
        {name: known.read(one) for name, one in zip(READ, (sent, other), strict=True)} if known.read else {}
    )
    for kind, of in TOKENS.items():
        true = {token for place in secret for token in of(known.examples[place])}
        reference = Reference(gram, known.tokens[kind][kept], weights)
        attacks = {"frequent": reference.tokens.mean(axis=0), **read}
        attacks |= zip(LEARNED, reference.learned(along, squares, len(secret), draw), strict=True)
        guesses = {name: ranked(scores, draw)[: len(true)].tolist() for name, scores in attacks.items()}
        for name, guessed in guesses.items():
            figures[f"{kind}.{name}"] = recovered(guessed, true)
            if name != "frequent":
                figures[f"{kind}.{name}.rest"] = recovered(guessed, true, guesses["frequent"])
    return figures


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return the mean of every figure over the secrets that have it; None if none has."""
    means: dict[str, float | None] = {}
    for key in each[0]:
        values = [one[key] for one in each if math.isfinite(one[key])]
        means[key] = sum(values) / len(values) if values else None
    return means


if __name__ == "__main__":
    begun = time.perf_counter()
    torch.set_num_threads(1)
    said = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    made = row_of(Audit(**said | {key: tuple(said[key]) for key in ("steps", "batches")}))
    seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time()}
    print(json.dumps(made | {key: round(value, 2) for key, value in seconds.items()}))
