"""`bench federation`, `case-study` and `initialisers`: tables of many runs, which go on where they were interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.core.files import write_atomic

HEAD = """# Federated systems at equal device work

Written by `edgetune bench federation`; do not edit. Every device that is asked does {work:,} forward passes of a record
in all, a backward pass counting as two; 20 devices, 10 % a round. Loss in nats a response token and Rouge-L on the same
held-out records, mean and standard deviation over seeds. Bytes are lengths of payloads: the longest reply, the longest
message of the first round, the mean message later, and all of a run. Memory is the peak of a device's answer above that
of a forward pass over its batch, in a process of its own. Seconds are those of the rounds, one thread; seeds may have
run on different machines and beside other runs, so that they say the order of magnitude.
"""


def federation_table(
    models: Sequence[str], data: str | None, only: Sequence[str], seeds: int, out: Path, jobs: int, work: int
) -> None:
    """Run the table of federated systems on the embedded model and others; print it, and write `systems.md`."""
    from edgetune.bench.federation import cells_of, federation, runnable
    from edgetune.methods.catalogue import tuning_names

    console = Console(highlight=False, soft_wrap=True)
    methods = list(only) or [name for name in tuning_names() if name != "zo_sgd"]
    cells = [
        *cells_of(methods, seeds, work=work),
        *(
            cell
            for model in models
            for cell in cells_of(runnable(methods, model), seeds, model=model, data=data, work=work)
        ),
    ]

    def told(row: Mapping[str, Any]) -> None:
        console.print(
            f"{row['cell']}: loss {row['base_loss']:.3f} -> {row['loss']:.3f}, {row['seconds']:.0f} s"
        )

    lines = federation(cells, out, jobs=jobs, told=told)
    text = HEAD.format(work=work)
    for model in dict.fromkeys(line["model"] for line in lines):
        mine = [line for line in lines if line["model"] == model]
        text += f"\n## {model}\n\nBefore: loss {mine[0]['base_loss'][0]:.3f}.\n\n{_table(mine)}\n"
        picture = f"systems-{model}.svg"
        text += f"\n![Heat map of the table]({picture})\n"
        _write(out / picture, _map(model, mine))
    _write(out / "systems.md", text)
    console.print(text)


STUDY = """# The case study of the survey, section III.D{proxy}

Written by `edgetune bench case-study`; do not edit. FedKSeed on {model}: {devices} devices, {share:g} % a round,
{steps} local iterations of one record, {rounds} rounds{of}; means and standard deviations over {repeats} seeds.

Figure 4(a), held-out loss by round and concentration of the Dirichlet split, K = {seeds}:

![Loss by round](case-study-{model}-a.svg)

Figure 4(b), Rouge-L F1 by number of seeds K, concentration {alpha:g}:

![Rouge-L by K](case-study-{model}-b.svg)

| K | Rouge-L F1 | loss |
|---|---|---|
{table}

{verdict} Loss before: {base:.4f}, Rouge-L {rouge:.1f}.
"""
SMALL = 100_000_000
"""Weights below which a model is a proxy of the study's."""


def case_study_table(model: str, data: str | None, repeats: int, out: Path, jobs: int) -> None:
    """Run the case study on one model, print what it says, and write its page and both figures."""
    from edgetune.bench import case_study as case
    from edgetune.bench.cells import run_cells
    from edgetune.bench.federation import spread
    from edgetune.models.backbone import load_backbone
    from edgetune.models.embedded import EMBEDDED
    from edgetune.report.curves import bars_of_error, curves

    console = Console(highlight=False, soft_wrap=True)
    weights = sum(weight.numel() for weight in load_backbone(model).model.parameters())
    study = case.PROXY if weights < SMALL else case.PUBLISHED
    cells = case.cells_of(study, model, None if model == EMBEDDED else data, repeats)

    def told(row: Mapping[str, Any]) -> None:
        console.print(
            f"{row['cell']}: loss {row['loss']:.4f}, Rouge-L {row['rouge_l']:.1f}, {row['seconds']:.0f} s"
        )

    rows = run_cells(cells, out / "case-study.jsonl", out / "runs", jobs=jobs, told=told)
    short, note = Path(model).name, " (a proxy)" if study is case.PROXY else ""
    of = f" of the study's {case.PUBLISHED.rounds}" if note else ""
    lines = {f"alpha {alpha:g}": points for alpha, points in case.by_alpha(study, rows).items()}
    rouge, loss = case.by_size(study, rows), case.by_size(study, rows, "loss")
    pictures = {
        "a": curves(f"a-{short}", lines, "round", f"held-out loss{note}"),
        "b": bars_of_error(f"b-{short}", rouge, "number of seeds K", f"Rouge-L F1, %{note}"),
    }
    for letter, picture in pictures.items():
        _write(out / f"case-study-{short}-{letter}.svg", picture.replace("<svg", SVG, 1))
    table = "\n".join(
        f"| {size} | {_spread(said, 2)} | {_spread(nats, 4)} |"
        for (size, *said), (_, *nats) in zip(rouge, loss, strict=True)
    )
    text = STUDY.format(
        proxy=f": a proxy of {weights:,} weights" if note else "", model=short, devices=study.devices,
        share=100 * study.participation, of=of, steps=study.steps, rounds=study.rounds, repeats=repeats,
        seeds=study.seeds, alpha=study.alphas[0], table=table, verdict=case.verdict(study, rows),
        base=spread(rows, "base_loss")[0], rouge=spread(rows, "base_rouge_l")[0],
    )  # fmt: skip
    _write(out / f"case-study-{short}.md", text)
    console.print(text)


STARTS = """# Federated LoRA by its start, beside all weights

Written by `edgetune bench initialisers`; do not edit. Model {model}: LoRA averaged by factors (fedit, rank {rank}) from
every initialiser, and all weights averaged (fedavg). Every device that is asked does {work:,} forward passes of a
record in all, a backward pass counting as two; 20 devices, 10 % a round, split by Dirichlet concentrations alpha.
{rates} Held-out loss in nats a response token, mean and standard deviation over {repeats} seeds; before: {base:.4f}.

| start | rate | {alphas} | up | down |
|---|---|{lines}---|---|
{table}

Bytes are those of the longest reply and the longest message of a round; where a start takes B A off the base, that
product travels down with every message, in factors.

{verdict}
"""
CHOSEN = """Learning rates are those of the packaged recipes; starts with large factors take a smaller one, found on
seed 0 among two."""
FOUND = "Every run finds its learning rate by the range test."


def initialisers_table(
    model: str, data: str | None, only: Sequence[str], repeats: int, out: Path, jobs: int, work: int
) -> None:
    """Run the table of LoRA's starts on one model, print what it says, and write its page."""
    from edgetune.bench import initialisers as bench
    from edgetune.bench.cells import run_cells
    from edgetune.bench.federation import spread
    from edgetune.models.embedded import EMBEDDED

    console, short = Console(highlight=False, soft_wrap=True), Path(model).name
    source = None if model == EMBEDDED else data
    names = list(only) or list(bench.NAMES)
    cells = bench.cells_of(repeats, names=names, model=model, data=source, work=work)

    def told(row: Mapping[str, Any]) -> None:
        console.print(
            f"{row['cell']}: loss {row['base_loss']:.4f} -> {row['loss']:.4f}, {row['seconds']:.0f} s"
        )

    rows = run_cells(cells, out / "initialisers.jsonl", out / "runs", jobs=jobs, told=told)
    lines, known = [], all("rate" in row for row in rows)
    for name in (bench.FULL, *names):
        losses = [_spread(spread(bench.of(rows, name, alpha), "loss"), 4) for alpha in bench.ALPHAS]
        up, down = (
            max(size for row in rows if row["initialiser"] == name for sizes in row[way] for size in sizes)
            for way in ("up", "down")
        )
        rate = spread(bench.of(rows, name, bench.ALPHAS[0]), "rate" if known else "learning_rate")[0]
        lines.append(f"| {name} | {rate:.2g} | {' | '.join(losses)} | {up:,} | {down:,} |")
    text = STARTS.format(
        model=short, rank=cells[-1].settings["method.rank"], work=work, repeats=repeats,
        rates=CHOSEN if known else FOUND,
        base=spread(rows, "base_loss")[0], alphas=" | ".join(f"alpha {alpha:g}" for alpha in bench.ALPHAS),
        lines="---|" * len(bench.ALPHAS), table="\n".join(lines), verdict=bench.verdict(rows),
    )  # fmt: skip
    _write(out / f"initialisers-{short}.md", text)
    console.print(text)


SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| method | loss | Rouge-L | up | down, first | down, later | all | memory | seconds | rounds | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in sorted(lines, key=lambda one: one["loss"][0]):
        later = "" if line["down_later"] is None else f"{line['down_later']:,}"
        rows.append(
            f"| {line['method']} | {_spread(line['loss'], 3)} | {_spread(line['rouge_l'], 1)} | {line['up']:,} "
            f"| {line['down_first']:,} | {later} | {line['total']:,} | {line['above'] / 1e6:.1f} MB "
            f"| {line['seconds'][0]:.0f} | {line['rounds']} | {line['seeds']} |"
        )
    return "\n".join(rows)


def _spread(pair: Sequence[float], digits: int) -> str:
    around = f" ± {pair[1]:.{digits}f}" if pair[1] else ""  # one seed has no spread
    return f"{pair[0]:.{digits}f}{around}"


def _map(model: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a stand-alone SVG of the table."""
    from edgetune.report.heat import Column, heat_map
    from edgetune.report.units import size

    columns = (
        Column("loss", "loss", "{:.3f}".format),
        Column("Rouge-L", "rouge_l", "{:.1f}".format, more=True),
        Column("up", "up", size, logarithmic=True),
        Column("down", "down", size, logarithmic=True),
        Column("memory", "above", size, logarithmic=True),
        Column("seconds", "seconds", "{:.0f}".format, logarithmic=True),
    )
    rows = {
        line["method"]: {
            "loss": line["loss"][0], "rouge_l": line["rouge_l"][0], "up": float(line["up"]),
            "down": float(line["down_later"] or line["down_first"]), "above": float(line["above"]),
            "seconds": line["seconds"][0],
        }
        for line in sorted(lines, key=lambda one: one["loss"][0])
    }  # fmt: skip
    return heat_map(f"heat-{model}", rows, columns).replace("<svg", SVG, 1)
