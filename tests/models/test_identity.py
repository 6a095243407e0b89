"""What names a base and its prompts: everything that decides a forward pass, a token or an end, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.models.backbone import load_backbone
from edgetune.models.identity import canonical
from edgetune.models.quiet import quiet


def change(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    said = json.loads(path.read_text())
    said = {key: value for key, value in (said | changes).items() if value is not None}
    path.write_text(json.dumps(said))


def digests(folder: Path) -> tuple[str, str]:
    loaded = load_backbone(folder)
    return loaded.digest, loaded.prompt_digest


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"max_position_embeddings": 64},
    ],
)
def test_what_decides_the_forward_pass_names_the_base(
    changes: dict[str, Any], save_tiny: Callable[..., Path]
) -> None:
    folder = save_tiny()
    before = digests(folder)
    change(folder / "config.json", **changes)
    after = digests(folder)
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "4.0.0"},
        {"_name_or_path": "somewhere/else"},
        {"architectures": None},
        {"use_cache": False},
        {"dtype": "bfloat16"},
        {"torch_dtype": "bfloat16"},
        {"attention_bias": False},
        {"rms_norm_eps": None},
    ],
)
def test_what_does_not_decide_it_leaves_the_name(
    changes: dict[str, Any], save_tiny: Callable[..., Path]
) -> None:
    folder = save_tiny()
    change(folder / "config.json", rms_norm_eps=1e-6)  # the class's default
    before = digests(folder)
    change(folder / "config.json", **changes)
    assert digests(folder) == before


def test_a_copy_in_a_wider_type_has_the_name_of_the_original(
    save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tiny()
    loaded = load_backbone(folder)
    with quiet():
        loaded.model.double().save_pretrained(tmp_path / "copy")
        loaded.tokenizer.save_pretrained(tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(folder)


def test_what_decides_tokens_and_ends_names_the_prompts(save_tiny: Callable[..., Path]) -> None:
    folder = save_tiny()
    seen = {digests(folder)}
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    seen.add(digests(folder))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    seen.add(digests(folder))
    change(folder / "generation_config.json", eos_token_id=[0, 5])
    seen.add(digests(folder))
    change(folder / "tokenizer_config.json", eos_token="th")
    seen.add(digests(folder))
    assert len({base for base, _ in seen}) == 1
    assert len({prompt for _, prompt in seen}) == 5


def test_use_of_a_tokenizer_leaves_its_name(save_tiny: Callable[..., Path]) -> None:
    from edgetune.models.identity import prompt_digest

    loaded = load_backbone(save_tiny())
    loaded.tokenizer(["a", "a bird"], padding=True, truncation=True, max_length=3)
    assert prompt_digest(loaded.tokenizer, loaded.model) == loaded.prompt_digest


def test_json_is_canonical() -> None:
    assert canonical({"b": 2.0, "a": (1, {"y": None, "x": 0.5})}) == canonical(
        {"a": [1.0, {"x": 0.5, "y": None}], "b": 2}
    )
    assert canonical({1: float("inf")}) == canonical({"1": float("inf")})
