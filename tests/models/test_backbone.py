from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from edgetune.core.batch import Batch, response_losses
from edgetune.core.errors import ModelError
from edgetune.models import source
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.digest import CHUNK, files_digest, tensor_digest
from edgetune.models.embedded import embedded_folder
from edgetune.models.identity import base_digest
from edgetune.models.quiet import quiet

DATA = Path(os.environ.get("EDGETUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "models").is_dir(), reason="needs ../shared/data or $EDGETUNE_DATA"
)
FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")


def logits(loaded: Backbone) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(input_ids=torch.arange(20)[None]).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_every_family_frozen_and_quietly(save, family: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save(family)
    capfd.readouterr()
    loaded = load_backbone(folder)
    assert capfd.readouterr() == ("", "")
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.dtype == torch.float32 == loaded.model.dtype
    assert loaded.size_bytes == (folder / "model.safetensors").stat().st_size
    assert loaded.folder == folder
    assert loaded.source == str(folder)
    assert logits(loaded).isfinite().all()
    assert loaded.tokenizer.decode(loaded.tokenizer("a bird").input_ids) == "a bird"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_the_digest_is_of_the_stored_weights(save, family: str, stored: torch.dtype) -> None:
    folder = save(family, dtype=stored)
    loads = [
        load_backbone(folder, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16, None)
    ]
    assert len({loaded.digest for loaded in loads}) == 1
    assert [loaded.dtype for loaded in loads] == [torch.float32, torch.float16, torch.bfloat16, stored]
    weights = tensor_digest(load_file(folder / "model.safetensors").items())
    assert loads[0].digest == base_digest(weights, AutoConfig.from_pretrained(folder))


def test_the_digest_follows_its_specification() -> None:
    tensors = {
        "b": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
        "a": torch.tensor(0.25),
        "c": torch.zeros(0),
    }
    expected = b'["a",[]]\n' + struct.pack("<f", 0.25) + b'["b",[1,2]]\n' + struct.pack("<2f", 1.5, -2.0)
    assert tensor_digest(tensors.items()) == hashlib.sha256(expected + b'["c",[0]]\n').hexdigest()
    long = torch.arange(2 * CHUNK + 3, dtype=torch.float32)
    assert (
        tensor_digest([("x", long)])
        == hashlib.sha256(f'["x",[{len(long)}]]\n'.encode() + long.numpy().tobytes()).hexdigest()
    )
    grid = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest([("x", grid.T)]) == tensor_digest([("x", grid.T.contiguous())])
    assert tensor_digest([("x", grid)]) != tensor_digest([("x", grid.T)])
    with pytest.raises(ValueError, match="two tensors"):
        tensor_digest([("x", grid), ("x", grid)])


def test_shards_have_the_digest_of_the_whole(save) -> None:
    whole = load_backbone(save())
    folder = save(max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    shards = load_backbone(folder)
    assert shards.digest == whole.digest
    assert torch.equal(logits(shards), logits(whole))
    assert shards.size_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_refuses_what_is_not_a_model_folder(tmp_path: Path, save) -> None:
    (tmp_path / "file").touch()
    cases: dict[str | Path, str] = {
        tmp_path / "absent": "no such folder",
        str(tmp_path / "absent"): "no such folder",
        "./absent": "no such folder",
        "a/b/c": "no such folder",
        "": "no config.json|no such folder",
        tmp_path / "file": "neither a model folder nor a GGUF file",
        tmp_path: "no config.json",
    }
    for wrong, message in cases.items():
        with pytest.raises(ModelError, match=message):
            load_backbone(wrong)
    for dtype in (torch.float64, torch.int8):
        with pytest.raises(ModelError, match="cannot be loaded as"):
            load_backbone(save(), dtype=dtype)


def test_a_device_that_is_not_there_is_a_model_error(save) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ModelError, match="cannot use the device cuda"):
        load_backbone(save(), device="cuda")


STALE = {
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neo": {
        "transformer.h.0.attn.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril(),
        "transformer.h.1.attn.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril().triu(-7),
        "transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9),
    },
    "gptj": {"transformer.h.0.attn.rotary_emb.inv_freq": torch.rand(8)},
    "llama": {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
        "model.layers.1.self_attn.rotary_emb.cos_cached": torch.rand(1, 1, 64, 8),
    },
    "opt": {"model.decoder.embed_positions.position_ids": torch.arange(64)[None]},
}


def store(folder: Path, more: dict[str, torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors") | more
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def library_logits(folder: Path) -> torch.Tensor:
    """What transformers itself computes with this folder."""
    with quiet(), torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.arange(20)[None]).logits


@pytest.mark.parametrize("family", STALE)
def test_stale_buffers_are_ignored_as_in_transformers(save, family: str) -> None:
    folder = save(family)
    store(folder, STALE[family])
    assert torch.equal(logits(load_backbone(folder)), library_logits(folder))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("transformer.h.0.attn.other.bias", torch.zeros(16)),
        ("transformer.h.0.attn.extra.bias", torch.ones(1, 1, 64, 64)),
        ("transformer.h.0.attn.extra.bias", torch.full((1, 1, 8, 8), 0.5).tril()),
        ("transformer.h.0.attn.masked_bias", torch.tensor(0.5)),
        ("transformer.position_ids", torch.tensor([0, 2, 1])),
        ("transformer.h.0.attn.rotary_emb.inv_freq.weight", torch.rand(4)),
    ],
)
def test_a_tensor_that_something_was_learnt_in_is_no_stale_buffer(
    save, name: str, tensor: torch.Tensor
) -> None:
    folder = save("gpt2")
    store(folder, {name: tensor})
    with pytest.raises(ModelError, match=f"does not have: {name}"):
        load_backbone(folder)


@pytest.mark.parametrize("family", ["llama", "gemma", "opt"])
@pytest.mark.parametrize("same", [True, False])
def test_a_head_beside_tied_embeddings_is_used_as_in_transformers(save, family: str, same: bool) -> None:
    folder = save(family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    stored = load_file(folder / "model.safetensors")
    embedding = next(tensor for name, tensor in stored.items() if "embed_tokens" in name)
    head = embedding.clone() if same else torch.randn(257, 16, generator=torch.Generator().manual_seed(1))
    store(folder, {"lm_head.weight": head})
    loaded = load_backbone(folder)
    assert torch.equal(logits(loaded), library_logits(folder))
    assert loaded.model.config.tie_word_embeddings == same
    loaded.model.save_pretrained(folder / "again")
    loaded.tokenizer.save_pretrained(folder / "again")
    assert torch.equal(logits(load_backbone(folder / "again")), logits(loaded))


def test_settings_of_the_library_survive_threads() -> None:
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    inside = threading.Event()

    def other() -> None:
        with quiet():
            inside.set()

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        inside.wait(0.2)
        assert not inside.is_set()
    thread.join()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_name_that_is_no_folder_is_fetched_from_the_hub(save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = save(), []
    monkeypatch.setattr(source, "snapshot", lambda name: asked.append(name) or folder)
    assert load_backbone("owner/name").source == "owner/name"
    assert asked == ["owner/name"]


def test_a_hub_that_does_not_answer_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **options: object) -> str:
        assert not {"*.bin", "*.py"} & set(options["allow_patterns"])
        raise ConnectionError("no network")

    monkeypatch.setattr("edgetune.models.source.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"owner/name: cannot fetch.*no network"):
        load_backbone("owner/name")


def test_the_library_s_settings_are_as_before(save) -> None:
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_backbone(save())
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@needs_data
def test_the_reference_loss_of_stories260k() -> None:
    loaded = load_backbone(DATA / "models" / "stories260K")
    text = next((DATA / "tinystories").glob("*.txt")).read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()][:300]
    total = count = 0.0
    for story in stories:
        ids = torch.tensor([loaded.tokenizer(story, verbose=False).input_ids[:512]])
        with torch.inference_mode():
            summed, tokens = response_losses(loaded.model, Batch(ids, torch.ones_like(ids), ids))
        total, count = total + float(summed), count + int(tokens)
    assert total / count == pytest.approx(1.5018, abs=0.005)


@needs_data
def test_the_digest_of_published_weights_does_not_change() -> None:
    assert files_digest([DATA / "models" / "stories260K" / "model.safetensors"]) == (
        "7058ce871ad4a398307b4008ac54cfbe3c246a361cb48217f4c0c1be47fe5d9c"
    )


def test_the_embedded_model_loads() -> None:
    try:
        folder = embedded_folder()
    except ModelError:
        pytest.skip("this checkout has no embedded model yet")
    loaded = load_backbone("embedded")
    assert loaded.folder == folder
    assert loaded.source == "embedded"
    assert logits(loaded).isfinite().all()
