"""Model folders with packed layers: what was solved is what is stored, and GGUF files keep the codes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, ModelError, VerifyError
from edgetune.core.gguf_read import read_gguf
from edgetune.core.integers import INTEGERS
from edgetune.export.folders import FOLDER_FORMATS, refuse_folder
from edgetune.models.backbone import load_backbone
from edgetune.models.licence import licence_of
from edgetune.recipe.preflight import compression_of
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.run.folders import compare_folder, compress_to_folder, plan_folder

LIBRARY = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="install edgetune[compressed-tensors]"
)
KINDS = [pytest.param("compressed-tensors", marks=LIBRARY), "gptq"]
SMALL = {"data__records": 40, "data__held_out": 6, "data__calibration": 4, "federation__devices": 2}
SETS = [f"--set={name.replace('__', '.')}={value}" for name, value in SMALL.items()]


def prepared(source: object = "embedded", **compression: Any) -> Prepared:
    known = {f"compression__{name}": value for name, value in compression.items()}
    recipe = load_recipe(
        None,
        **SMALL,
        model__source=str(source),
        data__source="embedded",
        compression__calibration_tokens=600,
        **known,
    )
    return prepare(recipe, split=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_a_folder_whose_codes_gguf_keeps_bit_for_bit(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "packed", tmp_path / "m.gguf"
    command = ["compress", "embedded", "--method", "optq", "--grid", "int4-g32", "--format", kind, *SETS]
    code = execute([*command, "--set=compression.calibration_tokens=600", "--out", str(folder)])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "matrices read back bit for bit" in said.out
    assert ("within 0 nats" in said.out) == (kind == "compressed-tensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]  # no solved blocks are left
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == kind
    card = (folder / "README.md").read_text()
    assert f"Compressed: {kind}, method `optq`" in card
    assert f"{sum(one.numel() for one in load_backbone('embedded').model.parameters()):,} weights" in card
    assert licence_of(folder) == "apache-2.0"

    assert execute(["export", str(folder), *SETS, "--out", str(file)]) == 0  # and llama.cpp agrees
    kinds = {tensor.name: tensor.kind for tensor in read_gguf(file).tensors}
    assert kinds["blk.0.attn_q.weight"] == 2  # Q4_0
    ours, theirs = (dict(load_backbone(one).model.named_parameters()) for one in (folder, file))
    packed = [name for name in ours if name.endswith("proj.weight")]
    assert len(packed) > 7
    assert all(torch.equal(ours[name], theirs[name]) for name in packed)


@LIBRARY
@pytest.mark.parametrize("grid", ["uint4-g32", "int8-row", "int4-g128-bf16"])
def test_transformers_predicts_what_the_solved_model_predicts(grid: str, tmp_path: Path) -> None:
    given = prepared(name="rtn", grid=grid)
    plan = plan_folder("compressed-tensors", given, compression_of(given.recipe), grid=True)
    checked = compress_to_folder(given.backbone.model, plan, tmp_path / "m", given, lambda event: None)
    assert checked.gap == 0
    assert checked.matrices > 7
    assert checked.size_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size


@LIBRARY
def test_groups_of_several_sizes_and_layers_in_float_stand_side_by_side(tmp_path: Path) -> None:
    small = prepared()
    rows = small.backbone.model.get_input_embeddings().weight.shape[0]
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=rows)).save_pretrained(tmp_path / "base")
    small.backbone.tokenizer.save_pretrained(tmp_path / "base")
    given = prepared(name="rtn", grid="int4-g64", source=tmp_path / "base")
    plan = plan_folder("compressed-tensors", given, compression_of(given.recipe), grid=True)
    checked = compress_to_folder(given.backbone.model, plan, tmp_path / "m", given, lambda event: None)
    assert checked.gap == 0
    said = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["config_groups"]
    sizes_of = {group["weights"]["group_size"]: group["targets"] for group in said.values()}
    assert set(sizes_of) == {64, 32}
    assert sizes_of[32] == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]


def test_a_folder_with_another_weight_is_no_folder_of_this_model(tmp_path: Path) -> None:
    given = prepared(name="rtn", grid="int4-g32")
    plan = plan_folder("gptq", given, compression_of(given.recipe), grid=True)
    compress_to_folder(given.backbone.model, plan, tmp_path / "m", given, lambda event: None)
    compare_folder(tmp_path / "m", given.backbone.model)
    file = tmp_path / "m" / "model.safetensors"
    stored = load_file(file)
    name = next(one for one in stored if one.endswith("qweight"))
    stored[name][0, 0] ^= 16
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(VerifyError, match=name.removesuffix("qweight")):
        compare_folder(tmp_path / "m", given.backbone.model)


def test_a_folder_that_fails_its_check_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, model: object) -> None:
        raise VerifyError("another weight", where=folder)

    monkeypatch.setattr("edgetune.run.folders.compare_folder", fails)
    given = prepared(name="rtn", grid="int4-g32")
    plan = plan_folder("gptq", given, compression_of(given.recipe), grid=True)
    with pytest.raises(VerifyError):
        compress_to_folder(given.backbone.model, plan, tmp_path / "m", given, lambda event: None)
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("gptq", {"grid": "uint4-g32"}, "symmetric grids with fp16 scales"),
        ("gptq", {"grid": "int4-g32-bf16"}, "symmetric grids with fp16 scales"),
        ("gptq", {"grid": "Q4_0"}, "gptq has no grid Q4_0"),
        ("compressed-tensors", {"grid": "Q4_K"}, "compressed-tensors has no grid"),
        ("gptq", {"size": "4bpw"}, "kept by grids of GGUF"),
        ("gptq", {"name": "sparsegpt"}, "leaves the weights in float"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused_before_anything_is_solved(
    kind: str, settings: dict[str, Any], words: str
) -> None:
    given = prepared(**settings)
    with pytest.raises(ConfigError, match=words):
        plan_folder(kind, given, compression_of(given.recipe), grid="grid" in settings)


def test_groups_that_do_not_divide_every_layer_are_refused_for_gptq_alone() -> None:
    model = prepared().backbone.model
    grids = {
        name: INTEGERS["int4-g32"] for name, _ in model.named_parameters() if name.endswith("proj.weight")
    }
    refuse_folder(FOLDER_FORMATS["gptq"], model, grids)
    last = next(reversed(grids))
    for other in (
        {**grids, last: INTEGERS["int4-g64"]},
        {name: grids[name] for name in grids if name != last},
    ):
        refuse_folder(FOLDER_FORMATS["compressed-tensors"], model, other)
        with pytest.raises(ModelError, match="one size of groups") as caught:
            refuse_folder(FOLDER_FORMATS["gptq"], model, other)
        assert last.removesuffix(".weight") in str(caught.value)


def test_a_model_of_transposed_layers_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50))
    with pytest.raises(ModelError, match="Conv1D"):
        refuse_folder(
            FOLDER_FORMATS["gptq"], model, {"transformer.h.0.attn.c_attn.weight": INTEGERS["int4-g32"]}
        )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--format", "marlin"], "no format 'marlin'"),
        (["--format", "gguf", "--grid", "int4-g128"], "GGUF has no grid int4-g128"),
        (["--format", "gptq", "--grid", "int5-g32"], "compression.grid"),
    ],
)
def test_a_format_and_a_grid_have_to_fit(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["compress", "embedded", *SETS, "--out", str(tmp_path / "new" / "m"), *more]) > 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_neither_the_base_nor_another_model_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = prepared(name="rtn", grid="int4-g32")
    base = tmp_path / "base"
    given.backbone.model.save_pretrained(base)
    given.backbone.tokenizer.save_pretrained(base)
    command = ["compress", str(base), "--data", "embedded", "--format", "gptq", "--grid", "int4-g32", *SETS]
    assert execute([*command, "--out", str(base)]) > 1
    assert "the folder of the base itself" in capsys.readouterr().err
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    assert execute([*command, "--out", str(base)]) > 1
    assert "of another model" in capsys.readouterr().err
