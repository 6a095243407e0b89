"""`bench leakage`: what attacks find in single uploads, in tables and a figure; it goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.core.files import write_atomic

HEAD = """# What an upload tells of its records

Written by `edgetune bench leakage`; do not edit. A device in the first round of a run trains on a secret batch, all of
its records in every step (`once`: of 16 records, four in each of four steps), and sends what its method sends; the
message is opened as a server opens it. The attacker is the server, or whoever reads its memory or a link without TLS:
it has base weights, method, rates, the directions' seed and this one message, before anything is combined. edgetune has
no secure aggregation; what an attacker gets of the sum of many devices' changes alone is another matter and was not
measured.

*Which records.* The batch is drawn from {candidates} records that the base was not trained on. The attacker lets the
device's own code send for each candidate alone (without noise where the method adds some) and compares. `top-1`: the
candidate of the greatest cosine is of the batch; `recall`: share of the batch among as many candidates of the greatest
cosine as it has records; `AUC`: a record of the batch stands before another; `fit`: share of the batch in the subset
whose weighted mean is closest to what was sent, by greedy choice and exchange (of one record: the nearest). Who guesses
finds {chances} of 1, 4 and 16 records, and has an AUC of .5. An attacker without candidates has none of this.

*Which tokens*, in as many guesses as the batch has different ones, so that precision is recall; of all of a record's
tokens, or of those that it trains to say. `frequent`: the most frequent of other records. `read`: from this upload and
the base alone, without any record: rows of the embedding or head that moved unlike the others, or, of slopes along a
pool of rank one, matching pursuit of the head's rows folded onto a tile. `learned`: ridge regression of token sets on
what {references} other records of the kind and the other candidates would have sent (several steps: the candidates
alone). `rest`: share of the batch's tokens that `frequent` misses and the attack finds. `read, control` and `control`
are `read` and `learned`, shown what another batch sent: what is not above them is no leak of this batch.

Noise is found for the epsilon of one round in which every record is in every step, 6 if no other is named. Mean and
standard error over {seeds} seeds, or as many as a row says, each with candidates, batches and directions of its own.
Bytes are those of the whole message. Vectors of more than {width:,} numbers are compared by sketches of as many, which
puts .004 of noise on a cosine.
"""
NOT_TRIED = """
## What was not tried

Later rounds and several messages of one device; optimisation of inputs until their gradient fits (which orders tokens
into text); learning from more records, or by more than a ridge; devices of more records than these. So
figures are what these attacks get, no bound on what others do. The one bound here is the accountant's, and at an
epsilon of 6 it allows far more than was found. That a method sends few numbers bounds how many bits travel, not whose.
"""
SAID = """Records that the better of cosine and fit finds, and tokens of four records beyond the frequent ones that the
better of reading and learning finds:"""
SHOWN = 4
"""Records of the batches of the figure and of the sentences."""
IDENTIFIED = ("recall", "fit")
CONTROLS = (("read", "read-control"), ("learned", "control"))
"""Attacks on tokens, and what each is held against."""
Share = tuple[float, float]
"""Mean and standard error."""


def leakage_table(
    model: str | None, data: str | None, only: Sequence[str], seeds: int, out: Path, jobs: int
) -> None:
    """Run the audit; print and write the page of all that the folder holds, its figures beside it."""
    from edgetune.bench.cells import read_rows
    from edgetune.bench.forwards import Task
    from edgetune.bench.leakage import ROWS, audits_of, leakage, ways_of
    from edgetune.models.embedded import EMBEDDED

    console, ways = Console(highlight=False, soft_wrap=True), ways_of(only)

    def told(row: Mapping[str, Any]) -> None:
        case = row["cases"][0]
        said = f"{case['figures']['fit']:.0%} of {case['records']} identified"
        console.print(
            f"{row['task']}, {row['way']}, seed {row['seed']}: {said}, {row['cpu_seconds']:.0f} CPU s"
        )

    leakage(audits_of(Task(model or EMBEDDED, data), ways, seeds), out, jobs=jobs, told=told)
    text = page_of(list(read_rows(out / ROWS)), out)
    _write(out / "leakage.md", text)
    console.print(text)


def page_of(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Return the page of some rows, its figures written beside it."""
    from edgetune.bench.leakage import BATCHES, lines_of
    from edgetune.cli.tables import SVG
    from edgetune.privacy.sketch import WIDTH
    from edgetune.report.leaks import shares

    candidates = rows[0]["candidates"]
    text = HEAD.format(
        candidates=candidates, references=rows[0]["references"], seeds=len({row["seed"] for row in rows}),
        width=WIDTH, chances=", ".join(f"{100 * count / candidates:.1f} %" for count in BATCHES),
    )  # fmt: skip
    for task in dict.fromkeys(row["task"] for row in rows):
        lines = lines_of([dict(row) for row in rows if row["task"] == task])
        shown = [line for line in lines if line["records"] == SHOWN]
        marks = {_called(line): [best(line, IDENTIFIED), *beyond(line)] for line in shown}
        single = {(line["way"], line["steps"]): line for line in lines if line["records"] == 1}
        said = [f"- {sentence(line, single.get((line['way'], line['steps'])))}" for line in shown]
        text += f"\n## {task}\n\n{SAID}\n\n" + "\n".join(said)
        if marks:
            name = f"leakage-{task}"
            labels = (f"records, of {SHOWN}", "tokens that are not frequent", "the same, control")
            picture = shares(name, marks, labels, SHOWN / candidates, "share found")
            _write(out / f"{name}.svg", picture.replace("<svg", SVG, 1))
            text += f"\n\n![Shares of records and tokens found, by method]({name}.svg)\n"
        text += f"\n### Which records\n\n{_records(lines)}\n\n### Which tokens\n\n{_tokens(lines)}\n"
    return text + NOT_TRIED


def best(line: Mapping[str, Any], keys: Sequence[str]) -> Share | None:
    """Return the greatest of some figures of a line with its standard error; None if it has none of them."""
    known = [line[key] for key in keys if line.get(key) is not None]
    return max(known, default=None)


def beyond(line: Mapping[str, Any]) -> tuple[Share | None, Share | None]:
    """Return the share of tokens that are not frequent which the better attack finds, and that of its control."""
    pairs = [(line.get(f"all.{one}.rest"), line.get(f"all.{other}.rest")) for one, other in CONTROLS]
    known = [(found, control) for found, control in pairs if found is not None and control is not None]
    return max(known, key=lambda pair: pair[0][0] - pair[1][0], default=(None, None))


def _called(line: Mapping[str, Any]) -> str:
    steps = f"{line['steps']} steps" if line["steps"] > 1 else "1 step"
    return f"{line['way']}, {steps}"


def sentence(line: Mapping[str, Any], single: Mapping[str, Any] | None) -> str:
    """Say what an attacker gets of a method.

    Args:
        line: of some records.
        single: of one record and as many steps.
    """
    (found, control), many = beyond(line), "s" if line["numbers"] > 1 else ""
    said = f"`{_called(line).replace(', ', '`, ')}, {line['numbers']:,} number{many}: "
    said += f"{_share(best(single, IDENTIFIED))} of single records, " if single else ""
    said += f"{_share(best(line, IDENTIFIED))} of {line['records']}"
    if found is None or control is None:
        return said + "."
    if found[0] - control[0] > 2 * (found[1] ** 2 + control[1] ** 2) ** 0.5:
        return f"{said}; {_share(found)} of their tokens that are not frequent (control {_share(control)})."
    return f"{said}; of their tokens nothing above the control."


def _records(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| method | steps | records | numbers | bytes | noise | top-1 | recall | AUC | fit | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        noise = f"{line['noise']:.2f}" if line["noise"] else ""
        cells = [
            line["way"], line["steps"], line["records"], f"{line['numbers']:,}", f"{line['bytes']:,}", noise,
            *(_share(line[key]) for key in ("top1", "recall")), _area(line["auc"]), _share(line["fit"]),
            line["seeds"],
        ]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _tokens(lines: Sequence[Mapping[str, Any]]) -> str:
    named = ("frequent", "read", "read-control", "learned", "control")
    attacks = [*named, *(f"{one}.rest" for one in named[1:])]
    titles = [
        ("rest: " if one.endswith(".rest") else "") + one.removesuffix(".rest").replace("-", ", ")
        for one in attacks
    ]
    rows = [
        f"| method | steps | records | tokens | {' | '.join(titles)} |",
        f"|{'---|' * (4 + len(titles))}",
    ]
    for line in lines:
        for kind, title in (("all", "all"), ("said", "said")):
            figures = [_share(line.get(f"{kind}.{attack}")) for attack in attacks]
            cells = [line["way"], line["steps"], line["records"], title, *figures]
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _share(pair: Sequence[float] | None) -> str:
    if pair is None:
        return ""
    around = f" ± {100 * pair[1]:.0f}" if pair[1] else ""
    return f"{100 * pair[0]:.0f}{around} %"


def _area(pair: Sequence[float]) -> str:
    around = f" ± {pair[1]:.2f}" if pair[1] else ""
    return f"{pair[0]:.2f}{around}"


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))
