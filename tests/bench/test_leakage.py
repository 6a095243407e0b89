"""The audit of uploads: what is sent is what a server gets, exact cases, rows that stay, and a page of them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetune.bench import leakage
from edgetune.bench.forwards import Task
from edgetune.bench.leakage import (
    CANDIDATES,
    QUIET,
    WAYS,
    Audit,
    Way,
    audits_of,
    lines_of,
    variant,
    ways_of,
)
from edgetune.bench.leaking import noise_of, secrets_of
from edgetune.bench.leaking import row_of as made_here
from edgetune.bench.reading import reader_of
from edgetune.bench.uploads import Sender
from edgetune.cli.leakage_table import best, beyond, page_of
from edgetune.core.errors import ConfigError, DataError
from edgetune.data.encode import Example
from edgetune.models.backbone import load_backbone
from edgetune.privacy import Releases, spent
from edgetune.privacy.vocabulary_rows import moved_rows

RECORDS = [
    Example((5, 9, 17, 40, 41, 60), 3),
    Example((5, 9, 30, 70, 71), 2),
    Example((8, 50, 51, 52, 53, 90, 91), 4),
]


def audit(way: str, **changes: Any) -> Audit:
    (one,) = audits_of(Task(), ways_of([way]), 1)
    small = {"candidates": 8, "references": 8, "secrets": 2, "batches": (1, 2), "steps": (1,)}
    return replace(one, settings={"data.records": 40, "data.held_out": 8}, **(small | changes))


def sender(folder: Path, way: Way, **options: object) -> Sender:
    method = variant(replace(way, options={**way.options, "batch_size": 16, "micro_batch": 0, **options}))
    return Sender(SimpleNamespace(pad_id=0, method=method, backbone=load_backbone(folder)), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_untied_embedding_in_an_upload_of_fedavg_names_exactly_the_tokens_of_the_batch(
    save_tiny: Any, steps: int
) -> None:
    sent = sender(save_tiny("llama"), WAYS["fedavg"], local_steps=steps).send(RECORDS[:2])
    moved = moved_rows(sent.update.tensors["model.embed_tokens.weight"])  # type: ignore[union-attr]
    # the last token of the longest record is nobody's input that a loss depends on
    read = {token for one in RECORDS[:2] for token in one.input_ids[:-1]}
    assert set(moved.nonzero().flatten().tolist()) == read


def test_uploads_are_those_of_the_methods_and_the_same_every_time(save_tiny: Any) -> None:
    folder = save_tiny("llama")
    for way, numbers in (("fedskip", 4096), ("fedskip-16", 16), ("feedsign", 7), ("fwdllm", 7)):
        steps = 1 if way.startswith("fedskip") else 7
        one = sender(folder, WAYS[way], local_steps=steps)
        first, again = one.send(RECORDS[:1]), one.send(RECORDS[:1])
        assert (first.numbers, len(first.vector)) == (numbers, numbers), way
        assert first.bytes == again.bytes
        assert np.array_equal(first.vector, again.vector)
        assert not np.array_equal(first.vector, one.send(RECORDS[2:]).vector), way
    assert set(np.abs(first.vector)) != {1.0}
    assert set(np.abs(sender(folder, WAYS["feedsign"], local_steps=7).send(RECORDS).vector)) == {1.0}


def test_tokens_are_read_where_rows_of_the_vocabulary_travel_and_nowhere_else(save_tiny: Any) -> None:
    folder = save_tiny("qwen2")  # its embedding is its head
    for way in ("fedavg", "fedskip"):
        one = sender(folder, WAYS[way], local_steps=1)
        read = reader_of(SimpleNamespace(backbone=one.worker.backbone), one, 0)  # type: ignore[arg-type]
        assert read is not None
        assert read(one.send(RECORDS)).shape == (100,)
    for way in ("fedit", "fedkseed", "fwdllm"):
        one = sender(folder, WAYS[way], local_steps=1)
        assert reader_of(SimpleNamespace(backbone=one.worker.backbone), one, 0) is None  # type: ignore[arg-type]


def test_who_knows_all_but_the_record_ranks_it_first_and_a_linear_upload_is_taken_apart() -> None:
    for way in ("fedavg", "fedskip"):
        one, two = made_here(audit(way))["cases"]
        assert (one["records"], one["steps"], two["records"]) == (1, 1, 2)
        assert {one["figures"][key] for key in ("top1", "recall", "auc", "fit")} == {1.0}, way
        assert two["figures"]["auc"] > 0.8
        assert 0 <= two["figures"]["all.frequent"] <= 1
    assert two["figures"]["fit"] == 1  # fedskip
    assert two["numbers"] == 4096
    assert 2 * 4096 < two["bytes"] < 2 * 4096 + 200


def test_the_noise_of_a_round_spends_its_epsilon_and_hides_the_record() -> None:
    pytest.importorskip("dp_accounting")
    one = audit("dpzero", steps=(2,), batches=(1,), secrets=8, references=2)
    noise = noise_of(one, 2)
    assert spent(noise, [Releases(1.0, 2)], 1e-5) == pytest.approx(6.0, rel=1e-3)
    loud, quiet = (
        made_here(each)["cases"][0]
        for each in (one, replace(one, epsilon=None, options={**one.options, **QUIET}))
    )
    assert (loud["noise"], quiet["noise"]) == (noise, 0.0)
    assert quiet["figures"]["fit"] == 1
    assert loud["figures"]["fit"] < 0.8


def test_secrets_are_drawn_without_sharing_records() -> None:
    drawn = secrets_of(audit("fedskip", candidates=20, secrets=8), 4, np.random.default_rng(0))
    assert [len(one) for one in drawn] == [4] * 5
    assert sorted(place for one in drawn for place in one) == list(range(20))


def test_too_few_records_are_refused() -> None:
    with pytest.raises(DataError, match="different records"):
        made_here(audit("fedskip", references=5000))


def test_methods_that_cannot_be_audited_are_refused() -> None:
    with pytest.raises(ConfigError, match="asks devices before a round"):
        ways_of(["fedselft"])
    with pytest.raises(ConfigError, match="noise of dp_aggzo"):
        ways_of(["dp_aggzo"])
    assert ways_of(["mezo"])["mezo"].method == "mezo"
    assert list(ways_of([])) == list(WAYS)


def test_names_tell_everything_apart_but_folders() -> None:
    one = audit("fedskip")
    others = [replace(one, **{key: 3}) for key in ("seed", "candidates", "references", "secrets")]
    others += [replace(one, steps=(2,)), replace(one, options={"pool": 2}), audit("fedkseed")]
    assert len({one.name, *(other.name for other in others)}) == 1 + len(others)
    assert replace(one, model="/elsewhere").name == one.name


def test_a_row_is_made_in_a_process_of_its_own_and_stays(tmp_path: Path) -> None:
    one = audit("fedskip-16", batches=(1,), candidates=2, references=2, secrets=1)
    told: list[Any] = []
    (row,) = leakage.leakage([one], tmp_path, jobs=1, told=told.append)
    assert row["cases"] == made_here(one)["cases"]
    assert leakage.leakage([one], tmp_path, jobs=1, told=told.append) == [row]
    assert told == [row]


def fake(one: Audit) -> dict[str, Any]:
    """Return a row in which fedskip tells much, and everything else nothing."""
    much = 1.0 if one.way == "fedskip" else 0.0625
    figures = {"top1": much, "recall": much, "auc": 0.5, "fit": much - 0.01 * one.seed, "all.frequent": 0.5}
    figures |= {"all.learned.rest": 0.1 + 0.5 * (much == 1) + 0.01 * one.seed, "all.control.rest": 0.1}
    figures |= {"said.frequent": None, "all.read.rest": 0.9, "all.read-control.rest": 0.92}
    told = {"numbers": 4096, "bytes": 8254, "noise": 0.0, "figures": figures}
    kept = {
        key: value
        for key, value in asdict(one).items()
        if key in ("task", "way", "seed", "candidates", "references")
    }
    return {"cell": one.name, **kept, "cases": [{"records": count, "steps": 1, **told} for count in (1, 4)]}


def test_lines_are_means_over_seeds_with_their_standard_errors() -> None:
    rows = [fake(one) for one in audits_of(Task(), ways_of(["fedkseed", "fedskip"]), 3)]
    lines = lines_of(rows)
    assert [(line["way"], line["records"]) for line in lines] == [
        ("fedskip", 1), ("fedskip", 4), ("fedkseed", 1), ("fedkseed", 4)
    ]  # fmt: skip
    assert lines[0]["fit"] == (pytest.approx(0.99), pytest.approx(0.01 / 3**0.5))
    assert lines[0]["said.frequent"] is None
    assert lines_of(rows[:1])[0]["fit"] == (pytest.approx(rows[0]["cases"][0]["figures"]["fit"]), 0.0)
    assert beyond(lines[0]) == (lines[0]["all.learned.rest"], lines[0]["all.control.rest"])
    read = {"all.read.rest": (0.9, 0.1), "all.read-control.rest": (0.2, 0.1)}
    assert beyond(lines[0] | read) == ((0.9, 0.1), (0.2, 0.1))  # further above its control
    assert beyond({}) == (None, None)
    assert best(lines[0], ("recall", "fit", "no such")) == (1.0, 0.0)


def test_the_page_says_of_each_method_what_the_rows_say_and_draws_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [fake(one) for one in audits_of(Task(), ways_of(["fedkseed", "fedskip"]), 3)]
    page = page_of(json.loads(json.dumps(rows)), tmp_path)
    assert (
        "`fedskip`, 1 step, 4,096 numbers: 100 % of single records, 100 % of 4; 61 ± 1 % of their tokens"
        in page
    )
    assert (
        "`fedkseed`, 1 step, 4,096 numbers: 6 % of single records, 6 % of 4; of their tokens nothing above the control."
        in page
    )
    assert f"drawn from {CANDIDATES} records" in page
    assert re.search(
        r"\| fedskip \| 1 \| 4 \| 4,096 \| 8,254 \|  \| 100 % \| 100 % \| 0.50 \| 99 ± 1 % \| 3 \|", page
    )
    picture = (tmp_path / "leakage-embedded.svg").read_text()
    assert "(leakage-embedded.svg)" in page
    assert "fedskip, 1 step" in picture
    assert page == page_of(rows, tmp_path)
