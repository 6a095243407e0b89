from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.cli import app as cli
from edgetune.core.ledger import read_ledger

pytest.importorskip("gguf")
pytest.importorskip("cryptography")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model file of a few bytes and ledgers of it."""

    from edgetune.core.keys import key_id, pool_key
    from edgetune.core.ledger import DirectionsSpec, Ledger, write_ledger
    from edgetune.core.update import Projected
    from edgetune.export.gguf_file import write_gguf
    from edgetune.models.backbone import load_backbone

    monkeypatch.chdir(tmp_path)
    backbone = load_backbone("embedded")
    said = {"base_digest": backbone.digest, "ledger_digest": ""}
    write_gguf(Path("model.gguf"), backbone.model, backbone.tokenizer, quantised={}, metadata=said)
    for name, key in (("fed", 5), ("ann", 9)):
        directions = DirectionsSpec("rademacher", 0, key_id(pool_key(1)), 1)
        write_ledger(
            Path(f"{name}.ledger"), Ledger(backbone.digest, "mezo", Projected.of(key, 1e-3), directions)
        )
    return tmp_path


Run = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def execute(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        assert cli.execute(arguments) == code
        captured = capfd.readouterr()
        return captured.err if code else captured.out

    return execute


def test_a_folder_with_ledgers_on_it_has_a_card(desk: Path, run: Run) -> None:
    run("apply", "embedded", "fed.ledger", "ann.ledger", "--out", "tuned")
    text = Path("tuned/README.md").read_text()
    assert "# `embedded, tuned with mezo + mezo`" in text
    for name in ("fed", "ann"):
        assert f"digest `{read_ledger(Path(f'{name}.ledger')).digest}`" in text
    assert "license: apache-2.0" in text


def test_a_copy_and_the_file_itself_hold_the_same_bytes(desk: Path, run: Run) -> None:
    base = Path("model.gguf").read_bytes()
    assert "38 of 38 tensors changed" in run("apply", "model.gguf", "fed.ledger", "--out", "copy.gguf")
    assert "holds fed.ledger (mezo, round 0)" in run("apply", "model.gguf", "fed.ledger", "--in-place")
    assert Path("copy.gguf").read_bytes() == Path("model.gguf").read_bytes()
    assert json.loads(run("manifest", "model.gguf"))["ledgers"][0]["name"] == "fed.ledger"
    run("apply", "model.gguf", "ann.ledger", "--in-place", "--add")
    assert "holds fed.ledger" in run("rollback", "model.gguf")
    assert "the base again" in run("rollback", "model.gguf", "--base")
    assert Path("model.gguf").read_bytes() == base


def test_a_signed_manifest_updates_a_file_and_a_tampered_one_does_not(desk: Path, run: Run) -> None:
    run("sign", "--new", "key")
    assert "number 1, 1 ledgers" in run("manifest", "model.gguf", "fed.ledger", "--out", "update.json")
    assert "not signed" in run("apply", "model.gguf", "--manifest", "update.json", "--key", "key.pub", code=5)
    run("sign", "update.json", "--key", "key")
    said = run("apply", "model.gguf", "--manifest", "update.json", "--key", "key.pub")
    assert "holds fed.ledger" in said
    assert "bytes were fetched" in said
    run("rollback", "model.gguf")
    Path("update.json").write_text(Path("update.json").read_text().replace('"own"', '"F16"'))
    assert "does not fit" in run(
        "apply", "model.gguf", "--manifest", "update.json", "--key", "key.pub", code=5
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("apply", "model.gguf", "fed.ledger"), "where shall the result go"),
        (("apply", "model.gguf", "--in-place"), "no ledger is named"),
        (("apply", "model.gguf", "fed.ledger", "--in-place", "--out", "x"), "--out writes another file"),
        (("apply", "model.gguf", "fed.ledger", "--out", "x", "--touched", "Q9"), "no way to store"),
        (("apply", "model.gguf", "fed.ledger", "--out", "model.gguf"), "this is the base itself"),
        (("sign",), "--new KEY alone"),
        (("manifest", "model.gguf"), "its own base"),
        (("rollback", "model.gguf"), "never changed"),
    ],
)
def test_what_is_asked_for_in_a_wrong_way_is_one_line(
    desk: Path, run: Run, arguments: tuple[str, ...], said: str
) -> None:
    before = sorted(desk.iterdir())
    assert said in run(*arguments, code=2)
    assert sorted(desk.iterdir()) == before


def test_an_adapter_of_a_dense_ledger_is_refused_with_what_to_use(desk: Path, run: Run) -> None:
    assert "edgetune apply" in run("adapter", "fed.ledger", "--base", "model.gguf", "--out", "a.gguf", code=4)


@pytest.fixture
def low(desk: Path) -> Path:
    """A ledger of all weights along a pool of directions of rank one."""
    import numpy as np

    from edgetune.core.keys import key_id, pool_key
    from edgetune.core.ledger import DirectionsSpec, Ledger, write_ledger
    from edgetune.core.update import Projected
    from edgetune.models.backbone import load_backbone

    directions = DirectionsSpec("rank_one_pool", 16, key_id(pool_key(1)), 1)
    update = Projected(np.arange(16), np.random.default_rng(0).normal(0, 1e-2, 16).astype(np.float32))
    write_ledger(Path("low.ledger"), Ledger(load_backbone("embedded").digest, "fedkseed", update, directions))
    return Path("low.ledger")


def test_what_an_adapter_leaves_out_is_said_and_measured(desk: Path, low: Path, run: Run) -> None:
    said = run("adapter", str(low), "--base", "model.gguf", "--out", "a.gguf")
    assert "a.gguf: 28 layers" in said
    assert "left out, for want of a place: model.embed_tokens.weight, 9 vectors; KL to the whole" in said
    assert "method.target=linear" in said
    (desk / "a.txt").write_text("The wind turns. " * 200)
    other = run("adapter", str(low), "--base", "model.gguf", "--out", "b.gguf", "--text", "a.txt")
    assert other.split("KL")[1] != said.split("KL")[1]
    unsaid = run("adapter", str(low), "--base", "model.gguf", "--out", "c.gguf", "--unmeasured")
    assert "9 vectors\n" in unsaid
    assert "KL" not in unsaid


def test_peft_gets_all_of_it(desk: Path, low: Path, run: Run) -> None:
    pytest.importorskip("peft")
    said = run("adapter", str(low), "--base", "embedded", "--out", "folder")
    assert "folder: 30 layers" in said
    assert "left out" not in said
    assert "lm_head is the embedding table once more" in said


def test_an_adapters_folder_says_what_it_is_and_what_opens_it(desk: Path, low: Path, run: Run) -> None:
    from huggingface_hub import ModelCard

    run("adapter", str(low), "--base", "embedded", "--out", "folder")
    found = ModelCard.load("folder/README.md")
    assert (found.data.library_name, found.data.license) == ("peft", "apache-2.0")
    assert found.data.pipeline_tag == "text-generation"
    assert {"edgetune", "lora", "peft"} <= set(found.data.tags or ())
    assert found.data.base_model is None, "the embedded model is none of the Hub's"
    for said in (read_ledger(low).digest, "30 layers", "To do it again"):
        assert said in found.text


def test_an_adapters_readme_of_somebody_else_is_not_written_over(desk: Path, low: Path, run: Run) -> None:
    Path("folder").mkdir()
    Path("folder/README.md").write_text("mine")
    assert "something here already" in run(
        "adapter", str(low), "--base", "embedded", "--out", "folder", code=6
    )
    assert Path("folder/README.md").read_text() == "mine"


def test_an_adapter_speaks_beside_its_base(desk: Path, low: Path, run: Run) -> None:
    pytest.importorskip("xllamacpp")
    run("adapter", str(low), "--base", "model.gguf", "--out", "a.gguf", "--unmeasured")
    asked = ("chat", "model.gguf", "--prompt", "Which crop is watered from Holm?", "--max-tokens", "8")
    assert run(*asked) != run(*asked, "--adapter", "a.gguf")
    assert "none.gguf: no such file" in run(*asked, "--adapter", "none.gguf", code=4)
