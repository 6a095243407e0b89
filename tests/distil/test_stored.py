"""A teacher's say in a file: a lower bound that is exact with every token, and refused where it is about others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgetune.core.errors import DataError
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.data.encode import Example, collate
from edgetune.distil.objective import Distilled
from edgetune.distil.stored import LEAST, Said, StoredTeacher, said_of, vocabulary_digest, write_said
from edgetune.distil.teacher import ModelTeacher

EXAMPLES = [Example((5, 6, 7, 8, 9), 2), Example((10, 11, 12, 13, 14, 15, 16), 4), Example((20, 21, 22), 1)]
WORDS = vocabulary_digest({"a": 0, "b": 1})


def _written(path: Path, model: Any, examples: list[Example], many: int) -> Path:
    said = []
    for one in examples:
        logits = model(input_ids=torch.tensor([one.input_ids])).logits[0]
        said.append(said_of(logits[one.response_start - 1 : -1], many))
    write_said(path, examples, said, teacher="it", vocabulary=100, vocabulary_digest=WORDS)
    return path


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_all_tokens_it_teaches_what_the_model_does(tiny_model: Any, tmp_path: Path, beta: float) -> None:
    student, teacher, kind = tiny_model(), tiny_model(seed=1), JensenShannon(beta)
    stored = StoredTeacher(_written(tmp_path / "said", teacher, EXAMPLES, 100), WORDS)
    batch = collate([EXAMPLES[1], EXAMPLES[0]], 0)  # in another order than they were written in
    found, counts = Distilled(kind, stored).records(student, batch)
    expected, wanted = Distilled(kind, ModelTeacher(teacher, "")).records(student, batch)
    assert torch.allclose(found, expected, rtol=2e-3, atol=2e-3)  # log-probabilities of 16 bits
    assert counts.tolist() == wanted.tolist() == [3, 3]


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_joined_outcomes_are_never_easier_to_tell_apart(seed: int, beta: float) -> None:
    draw, kind = torch.Generator().manual_seed(seed), JensenShannon(beta)
    student, teacher = torch.randn(2, 3, 12, generator=draw).mul(2)
    full = kind(student.log_softmax(-1), teacher.log_softmax(-1))
    below = torch.zeros(3)
    for many in (1, 4, 12):
        said = said_of(teacher, many)
        rows = (said.tokens.long(), said.log_probabilities.float(), said.tail)
        stored = StoredTeacher.__new__(StoredTeacher)
        stored.vocabulary = 12
        found = stored.divergence(kind, student, *rows)
        assert bool((found <= full + 5e-3).all())
        assert bool((found >= below - 5e-3).all())
        below = found
    assert torch.allclose(below, full, atol=5e-3)


def test_its_gradient_is_finite_where_the_teacher_leaves_nothing_to_the_others() -> None:
    teacher = torch.tensor([[300.0, 0.0, 0.0, 0.0]])
    said = said_of(teacher, 1)
    assert said.tail.tolist() == [LEAST]
    student = torch.zeros(1, 4, requires_grad=True)
    stored = StoredTeacher.__new__(StoredTeacher)
    stored.vocabulary = 4
    for beta in (0.0, 0.5, 1.0):
        loss = stored.divergence(
            JensenShannon(beta), student, said.tokens.long(), said.log_probabilities.float(), said.tail
        )
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert bool(torch.isfinite(gradient).all())
        assert gradient[0, 0] < 0


def test_other_records_other_places_and_other_words_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    path = _written(tmp_path / "said", tiny_model(seed=1), EXAMPLES[:2], 8)
    stored = StoredTeacher(path, WORDS)
    moved = Example(EXAMPLES[0].input_ids, 3)
    assert stored.missing([EXAMPLES[0], EXAMPLES[1], EXAMPLES[2], moved]) == 2
    for other in (EXAMPLES[2], moved):
        with pytest.raises(DataError, match="said nothing of a record"):
            Distilled(JensenShannon(), stored)(tiny_model(), collate([EXAMPLES[0], other], 0))
    with pytest.raises(DataError, match="not the student's"):
        StoredTeacher(path, vocabulary_digest({"a": 1, "b": 0}))


def test_equal_records_are_kept_once_and_the_name_covers_every_number(
    tiny_model: Any, tmp_path: Path
) -> None:
    model = tiny_model(seed=1)
    once = StoredTeacher(_written(tmp_path / "a", model, EXAMPLES, 8), WORDS)
    twice = StoredTeacher(_written(tmp_path / "b", model, [*EXAMPLES, EXAMPLES[0]], 8), WORDS)
    other = StoredTeacher(_written(tmp_path / "c", tiny_model(seed=2), EXAMPLES, 8), WORDS)
    assert len(load_file(tmp_path / "b")["records"]) == 3
    assert once.digest != other.digest
    assert twice.missing(EXAMPLES) == 0


@pytest.mark.parametrize("kind", ["text", "cut", "changed", "foreign"])
def test_a_damaged_or_foreign_file_is_refused(tiny_model: Any, tmp_path: Path, kind: str) -> None:
    path = _written(tmp_path / "said", tiny_model(seed=1), EXAMPLES, 8)
    if kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif kind == "changed":
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(content)
    else:
        save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError):
        StoredTeacher(path, WORDS)


def test_nothing_to_say_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_said(tmp_path / "said", [], [], teacher="it", vocabulary=4, vocabulary_digest=WORDS)
    assert not (tmp_path / "said").exists()
    assert Said(*(torch.zeros(1),) * 3).tail.tolist() == [0.0]
