"""Runs that learn from a teacher: every method, several processes, resumed, and from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events
from edgetune.core.ledger import read_ledger
from edgetune.export.gguf_file import write_gguf
from edgetune.methods.catalogue import tuning_names
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import embedded_folder
from edgetune.models.quiet import quiet
from edgetune.recipe.recipe import load_recipe
from edgetune.run import pipeline

SMALL = {
    "data.held_out": 4, "data.calibration": 2, "data.records": 24, "evaluation.max_new_tokens": 2,
    "data.max_tokens": 48, "federation.devices": 3, "federation.participation": 0.67, "federation.rounds": 2,
    "threads": 1, "method.learning_rate": 1e-3, "distillation.max_new_tokens": 4, "evaluation.samples": 0,
    "federation.workers": 1,
}  # fmt: skip


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Records in letters that the tiny tokenizer has."""
    path = tmp_path / "records.jsonl"
    lines = [{"instruction": f"say {n % 7}", "response": f"it is {n % 7} of {n}"} for n in range(60)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def _settings(student: Path, teacher: Path, records: Path, method: str, **more: object) -> list[str]:
    eps = {"method.eps": 1e-3} if load_recipe(None, method__name=method).method and _has_eps(method) else {}
    said = {
        "model.source": student, "data.source": records, "method.name": method, "distillation.teacher": teacher,
        "method.local_steps": 2, "method.batch_size": 4, **eps, **SMALL,
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return [f"{key}={value}" for key, value in said.items() if value is not None]


def _has_eps(method: str) -> bool:
    from edgetune.methods.catalogue import tuning_method

    return tuning_method(method).eps is not None


def _run(out: Path, settings: list[str], *, single: bool = False) -> Any:
    pipeline.run(load_recipe(None, settings), out, stages=pipeline.TUNING, single=single)
    return read_ledger(out / "tuned.ledger")


PRIVATE = ("dpzero", "dp_aggzo")


@pytest.mark.parametrize("method", tuning_names())
def test_every_method_learns_from_a_teacher_across_devices(
    save_tiny: Any, records: Path, tmp_path: Path, method: str
) -> None:
    more: dict[str, object] = {"distillation__on_policy": 0} if method in PRIVATE else {}
    if method in PRIVATE:
        more |= {"method__clip": 5.0, "method__epsilon": 0, "method__noise_multiplier": 0.1}
    settings = _settings(save_tiny(), save_tiny(seed=1), records, method, **more)
    _run(tmp_path / "out", settings)
    events = list(read_events(tmp_path / "out" / "events.jsonl"))
    rounds = [one for one in events if one["event"] == "round"]
    assert len(rounds) == 2
    assert not any(one["dropped"] for one in rounds)


@pytest.mark.parametrize("method", ["fedkseed", "fedavg"])
def test_processes_and_a_kill_change_no_bit_of_what_is_learnt_on_policy(
    save_tiny: Any, records: Path, tmp_path: Path, method: str
) -> None:
    more = {"distillation__on_policy": 0.7, "distillation__regenerate_every": 2, "method__local_steps": 3}
    student, teacher = save_tiny(), save_tiny(seed=1)
    settings = _settings(student, teacher, records, method, **more)
    alone = _run(tmp_path / "alone", settings)
    beside = _run(
        tmp_path / "beside", _settings(student, teacher, records, method, **more, federation__workers=2)
    )
    _run(tmp_path / "killed", _settings(student, teacher, records, method, **more, federation__rounds=1))
    gone_on = _run(tmp_path / "killed", settings)
    assert alone.digest == beside.digest == gone_on.digest
    other = _run(tmp_path / "other", _settings(student, save_tiny(seed=2), records, method, **more))
    assert other.digest != alone.digest


def test_a_run_does_not_go_on_with_another_teacher(save_tiny: Any, records: Path, tmp_path: Path) -> None:
    student, teacher = save_tiny(), save_tiny(seed=1)
    settings = _settings(student, teacher, records, "lora", federation__rounds=1)
    _run(tmp_path / "out", settings)
    save_tiny(seed=2, name=teacher.name)  # another model in the same folder
    with pytest.raises(Exception, match="another"):
        _run(tmp_path / "out", _settings(student, teacher, records, "lora", federation__rounds=2))


def test_on_one_device_the_divergence_from_the_teacher_falls(
    save_tiny: Any, records: Path, tmp_path: Path
) -> None:
    settings = _settings(
        save_tiny(), save_tiny(seed=1), records, "fedavg",
        federation__rounds=6, method__local_steps=10, method__learning_rate=1e-2, distillation__beta=0.0,
    )  # fmt: skip
    _run(tmp_path / "out", settings, single=True)
    events = read_events(tmp_path / "out" / "events.jsonl")
    losses = [one["train_loss"] for one in events if one["event"] == "round"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("method", ["lora", "mezo"])
def test_a_reward_is_raised_beside_the_teacher(
    save_tiny: Any, records: Path, tmp_path: Path, method: str
) -> None:
    own = tmp_path / "longest.py"
    own.write_text("def reward(answers, references):\n    return [one.count('t') / 8 for one in answers]\n")
    student, digests = save_tiny(), set[str]()
    for name, more in (("with", {"distillation__reward": own}), ("without", {})):
        settings = _settings(student, save_tiny(seed=1), records, method, distillation__on_policy=1, **more)
        digests.add(_run(tmp_path / name, settings, single=True).digest)
    assert len(digests) == 2


def test_a_file_teaches_devices_what_its_teacher_would(save_tiny: Any, records: Path, tmp_path: Path) -> None:
    student, teacher = save_tiny(), save_tiny(seed=1)
    said, weights = tmp_path / "said.safetensors", list[Any]()
    settings = _settings(student, teacher, records, "fedavg", distillation__on_policy=0)
    sets = [f"--set={one}" for one in settings if not one.startswith(("distillation", "federation"))]
    assert execute(["teach", str(teacher), "--out", str(said), "--top", "100", "--quiet", *sets]) == 0
    for name, more in (
        ("model", settings),
        ("file", _settings(student, teacher, records, "fedavg", distillation__teacher=None,
                           distillation__teacher_logits=said, distillation__max_new_tokens=4)),
    ):  # fmt: skip
        weights.append(_run(tmp_path / name, more).update.tensors)
    for key, one in weights[0].items():
        assert (one - weights[1][key]).abs().max() < 0.3 * one.abs().max()
    other = _settings(student, teacher, records, "fedavg", distillation__teacher=None,
                      distillation__teacher_logits=said, data__max_tokens=12)  # fmt: skip
    with pytest.raises(Exception, match="said nothing of"):
        _run(tmp_path / "other", other)
    assert not (tmp_path / "other" / "events.jsonl").exists()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A student of a configuration alone, as docs/distillation.md makes it."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(embedded_folder())
    config.num_hidden_layers, config.intermediate_size = 1, 64
    folder = tmp_path / "scratch"
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["fedavg", "fedkseed"])
def test_a_teacher_in_a_gguf_file_teaches_the_bits_that_its_folder_does(
    scratch: Path, records: Path, tmp_path: Path, method: str
) -> None:
    pytest.importorskip("gguf")
    backbone, file = load_backbone("embedded"), tmp_path / "teacher.gguf"
    write_gguf(file, backbone.model, backbone.tokenizer, quantised={}, float_type="F32")
    how = {"distillation__on_policy": 0.5, "federation__rounds": 1}
    learnt = {
        _run(tmp_path / f"out{number}", _settings(scratch, teacher, records, method, **how)).digest
        for number, teacher in enumerate((Path("embedded"), file))
    }
    assert len(learnt) == 1


def test_a_student_of_a_configuration_alone_comes_nearer_to_its_teacher(
    scratch: Path, records: Path, tmp_path: Path
) -> None:
    settings = _settings(
        scratch, Path("embedded"), records, "fedavg", federation__rounds=4, method__local_steps=8,
        method__learning_rate=3e-3, distillation__beta=0.0, distillation__on_policy=0.25,
    )  # fmt: skip
    _run(tmp_path / "out", settings, single=True)
    events = read_events(tmp_path / "out" / "events.jsonl")
    losses = [one["train_loss"] for one in events if one["event"] == "round"]
    assert losses[-1] < 0.8 * losses[0]
