"""A file whose matrices stay in it: the same runs as over a model that holds them, and none of them in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import edgetune
from edgetune.cli.app import execute
from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.blank import is_blank
from edgetune.core.ledger import read_ledger
from edgetune.core.quantised import GRIDS, CodedTensor, PackedTensor, values_of
from edgetune.core.update import Projected
from edgetune.export.gguf_file import write_gguf
from edgetune.federation.traffic import alternatives
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.recipe.computing import computing
from edgetune.recipe.prepare import recipe_method
from edgetune.recipe.recipe import Recipe, load_recipe
from edgetune.run.pipeline import TUNING, run
from edgetune.run.stage import Model

SMALL: dict[str, Any] = {
    "data__records": 40, "data__held_out": 6, "data__calibration": 6, "data__max_tokens": 40,
    "evaluation__max_new_tokens": 6, "evaluation__samples": 0, "federation__rounds": 2, "federation__devices": 3,
    "method__name": "fedkseed", "method__local_steps": 2, "model__residency": "streamed",
}  # fmt: skip
RATES: dict[str, Any] = {"method__learning_rate": 1e-6, "method__eps": 1e-3}
COMPUTED = ("Q8_0", "Q4_0", "Q4_1")
"""Types that layers compute with; others become floats first."""
KINDS = {"q_proj": "Q8_0", "k_proj": "Q4_0", "v_proj": "Q4_1", "gate_proj": "Q4_0", "up_proj": "Q5_1"}
KINDS |= {"embed_tokens": "Q5_0"}
"""The rest is in floats."""
kinds = pytest.mark.parametrize("directions", ["hadamard", "rank_one_pool"])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a file, in blocks of five types."""
    embedded = load_backbone("embedded")
    quantised = {
        name: round_to_nearest(weight, GRIDS[grid], AbsMax(), name=name)
        for name, weight in embedded.model.named_parameters()
        for part, grid in KINDS.items()
        if part in name
    }
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    return write_gguf(path, embedded.model, embedded.tokenizer, quantised=quantised)


def recipe_of(file: Path, directions: str, **more: Any) -> Recipe:
    return load_recipe(
        None, [], model__source=str(file), method__directions=directions, **{**SMALL, **RATES, **more}
    )


def holding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every model hold its matrices."""

    def whole(*given: Any, matrices: bool = True, **named: Any) -> Backbone:
        return load_backbone(*given, **named)

    for place in ("recipe.prepare", "federation.opening", "hosts.resident"):
        monkeypatch.setattr(f"edgetune.{place}.load_backbone", whole)


def losses(out: Path) -> dict[str, tuple[float, float]]:
    rows = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return {one["name"]: (one["loss"], one["rouge_l"]) for one in rows if one["event"] == "stage"}


def test_what_a_file_holds_is_read_where_it_lies(file: Path) -> None:
    mapped, held = load_backbone(file, matrices=False), load_backbone(file)
    assert mapped.base is not None
    assert held.base is None
    assert (mapped.digest, mapped.prompt_digest) == (held.digest, held.prompt_digest)
    again = load_backbone(file, matrices=False).base
    assert again is not None
    expected = dict(held.model.named_parameters())
    for name, weight in mapped.model.named_parameters():
        stored = mapped.base[name]
        assert torch.equal(values_of(stored, 0, stored.numel()).view(weight.shape), expected[name]), name
        assert is_blank(weight) == (weight.dim() > 1), name
        grid = next((grid for part, grid in KINDS.items() if part in name), None)
        assert isinstance(stored, PackedTensor) == (grid in COMPUTED), name
        assert isinstance(stored, CodedTensor) == (grid in ("Q5_1", "Q5_0")), name
    ours = mapped.base["model.layers.0.mlp.gate_proj.weight"]
    assert isinstance(ours, PackedTensor)
    raw, start = file.read_bytes(), ours.blocks[:600].numpy().tobytes()
    assert raw.count(start) == 1
    assert ours.blocks.storage_offset() == raw.index(start)
    assert ours.blocks.untyped_storage().nbytes() == len(raw)
    turned = mapped.base["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(turned, PackedTensor)
    assert raw.count(turned.blocks[:600].numpy().tobytes()) == 0
    assert turned.blocks.untyped_storage().nbytes() == turned.blocks.numel()


@kinds
def test_a_run_has_the_bits_of_one_over_a_model_that_holds_its_matrices(
    directions: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, ledgers = recipe_of(file, directions), {}
    for single in (True, False):
        found = run(recipe, tmp_path / f"mapped-{single}", stages=TUNING, single=single)
        assert isinstance(found, Model)
        matrices = [one for one in found.running.parameters() if one.dim() > 1]
        assert len(matrices) > 10
        # Of a file in floats of the model's own type parameters are views of its pages; here all are in other types.
        assert all(map(is_blank, matrices))
        ledgers[single] = (tmp_path / f"mapped-{single}" / "tuned.ledger").read_bytes()
        tuned = edgetune.load(
            file, tmp_path / f"mapped-{single}" / "tuned.ledger"
        )  # checks the recorded digest
        expected = dict(tuned.named_parameters())
        assert all(torch.equal(one, expected[name]) for name, one in found.model.named_parameters())
    holding(monkeypatch)
    for single, bits in ledgers.items():
        out = tmp_path / f"held-{single}"
        result = run(recipe, out, stages=TUNING, single=single)
        assert isinstance(result, Model)
        assert not any(map(is_blank, result.running.parameters()))
        assert (out / "tuned.ledger").read_bytes() == bits
        ours, theirs = losses(tmp_path / f"mapped-{single}"), losses(out)
        assert set(ours) == set(theirs) == {"base", "tuned"}
        for name, (loss, rouge) in ours.items():
            assert loss == pytest.approx(theirs[name][0], rel=1e-5)
            assert rouge == pytest.approx(theirs[name][1])


@kinds
def test_rate_and_radius_are_found_without_matrices(directions: str, file: Path, tmp_path: Path) -> None:
    recipe = recipe_of(file, directions, method__learning_rate=None, method__eps=None)
    result = run(recipe, tmp_path, stages=TUNING, single=True)
    assert isinstance(result, Model)
    assert all(is_blank(one) for one in result.running.parameters() if one.dim() > 1)
    said = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (rate,) = (one for one in said if one["event"] == "rate")
    assert rate["learning_rate"] > 0


@pytest.mark.parametrize("rate", [0.01, None], ids=["a rate", "a rate that is found"])
@pytest.mark.parametrize("single", [True, False], ids=["tune", "federate"])
@pytest.mark.parametrize("method", ["fedskip", "fedsubspace"])
def test_slopes_of_gradients_leave_matrices_in_the_file(
    method: str, single: bool, rate: float | None, file: Path, tmp_path: Path
) -> None:
    ledgers, said = {}, {"method__name": method, "method__learning_rate": rate, "method__eps": None}
    for residency in ("streamed", "fused"):
        out = tmp_path / residency
        recipe = recipe_of(file, "rank_one_pool", **said, model__residency=residency)
        result = run(recipe, out, stages=TUNING, single=single)
        assert isinstance(result, Model)
        matrices = [one for one in result.running.parameters() if one.dim() > 1]
        assert all(map(is_blank, matrices)) == (residency == "streamed")
        ledgers[residency] = read_ledger(out / "tuned.ledger")
        tuned = dict(
            edgetune.load(file, out / "tuned.ledger").named_parameters()
        )  # checks the recorded digest
        assert all(torch.equal(one, tuned[name]) for name, one in result.model.named_parameters())
    ours, theirs = ledgers["streamed"], ledgers["fused"]
    assert (ours.adapter, ours.base_digest) == (theirs.adapter, theirs.base_digest)
    assert isinstance(ours.update, Projected)
    assert isinstance(theirs.update, Projected)
    # What devices send is rounded to 16 bits, where a last bit of float32 may turn one of theirs.
    largest = float(abs(theirs.update.coefficients).max())
    assert largest > 0
    assert abs(ours.update.coefficients - theirs.update.coefficients).max() < 1e-3 * largest
    first, second = losses(tmp_path / "streamed"), losses(tmp_path / "fused")
    assert first["tuned"][0] == pytest.approx(second["tuned"][0], rel=1e-4)
    assert first["tuned"][0] < first["base"][0]


def test_processes_that_answer_for_devices_open_it_so(file: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        recipe = recipe_of(file, "rank_one_pool", federation__workers=workers)
        run(recipe, tmp_path / str(workers), stages=TUNING)
    one, two = ((tmp_path / name / "tuned.ledger").read_bytes() for name in ("1", "2"))
    assert one != b""
    first, second = (read_ledger(tmp_path / name / "tuned.ledger") for name in ("1", "2"))
    assert first.weights_digest == second.weights_digest != ""
    assert len(one) == len(two)


def test_a_base_rounded_to_another_grid_is_rounded_from_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(file, "rank_one_pool", model__residency="streamed-q4_0")
    run(recipe, tmp_path / "mapped", stages=TUNING, single=True)
    holding(monkeypatch)
    run(recipe, tmp_path / "held", stages=TUNING, single=True)
    ours, theirs = ((tmp_path / name / "tuned.ledger").read_bytes() for name in ("mapped", "held"))
    assert ours == theirs


def test_a_run_that_ends_in_a_file_holds_the_model(file: Path, tmp_path: Path) -> None:
    words = ["run", "--model", str(file), "--out", str(tmp_path), "--quiet", "--residency", "streamed"]
    for key, value in {**SMALL, **RATES, "model__residency": "streamed"}.items():
        words += ["--set", f"{key.replace('__', '.')}={value}"]
    assert execute([*words, "--set", "method.directions=rank_one_pool"]) == 0
    assert {"base", "tuned", "compressed", "llama.cpp"} <= set(losses(tmp_path))
    assert (tmp_path / "model.gguf").stat().st_size > 0


def test_a_model_computes_with_its_base_for_a_while_and_is_empty_again(file: Path) -> None:
    method = recipe_method(recipe_of(file, "rank_one_pool"))
    mapped, held = load_backbone(file, matrices=False), load_backbone(file)
    ids = torch.arange(30).view(2, 15)
    with torch.no_grad():
        expected = held.model(ids).logits
        with computing(mapped, method) as model:
            assert torch.allclose(model(ids).logits, expected, atol=1e-3)
        assert all(is_blank(one) for one in mapped.model.parameters() if one.dim() > 1)
        with computing(held, method) as model:
            assert torch.equal(model(ids).logits, expected)


def test_what_others_would_send_is_the_same_without_matrices(file: Path) -> None:
    mapped, held = load_backbone(file, matrices=False), load_backbone(file)
    assert alternatives(mapped) == alternatives(held)
    assert all(is_blank(one) for one in mapped.model.parameters() if one.dim() > 1)


@pytest.mark.parametrize("damage", ["nan", "infinity"])
def test_blocks_that_are_no_numbers_are_refused(damage: str, file: Path, tmp_path: Path) -> None:
    from edgetune.core.errors import ModelError
    from edgetune.models.gguf.weights import GgufWeights

    weights = GgufWeights(file)
    name = "model.layers.0.mlp.gate_proj.weight"
    raw, path = bytearray(file.read_bytes()), tmp_path / "bad.gguf"
    start = weights.tensor(name).offset + 18 * 7
    raw[start : start + 2] = {"nan": b"\x00\x7e", "infinity": b"\x00\x7c"}[damage]
    path.write_bytes(raw)
    for matrices in (True, False):
        with pytest.raises(ModelError, match="NaN or infinite"):
            load_backbone(path, matrices=matrices)


def test_what_is_no_file_is_loaded_as_always(save_tiny: Callable[..., Path]) -> None:
    backbone = load_backbone(save_tiny(), matrices=False)
    assert backbone.base is None
    assert not any(map(is_blank, backbone.model.parameters()))
