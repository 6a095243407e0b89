"""Attacks that read tokens from rows, from folds of rows, and by learning: each against tokens that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgetune.core.keys import pool_key
from edgetune.directions import RankOnePool
from edgetune.directions.source import Source
from edgetune.directions.space import BoundSpace
from edgetune.privacy.folded_rows import atoms, pursue
from edgetune.privacy.learned_tokens import Reference
from edgetune.privacy.sketch import sketch
from edgetune.privacy.vocabulary_rows import moved_rows, rows_apart

NAME, TOKENS, HIDDEN = "lm_head.weight", 300, 48


def test_the_gradient_of_an_untied_embedding_names_exactly_the_tokens_of_the_batch() -> None:
    torch.manual_seed(0)
    table = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    ids = torch.randint(TOKENS, (4, 11))
    functional.embedding(ids, table).tanh().sum(1).square().sum().backward()
    assert table.grad is not None
    said = set(ids.flatten().tolist())
    assert set(moved_rows(table.grad).nonzero().flatten().tolist()) == said
    assert set(rows_apart(table.grad).topk(len(said)).indices.tolist()) == said


def test_rows_of_a_heads_gradient_that_were_said_stand_apart() -> None:
    torch.manual_seed(0)
    head, states = torch.randn(TOKENS, HIDDEN, requires_grad=True), torch.randn(6, HIDDEN) + 2
    said = torch.tensor([7, 8, 30, 111, 250, 299])
    functional.cross_entropy(states @ head.T / HIDDEN, said).backward()
    assert head.grad is not None
    assert bool(moved_rows(head.grad).all())
    for gradient in (head.grad, head.grad.sign()):  # as an adaptive optimiser sends it
        assert set(rows_apart(gradient).topk(6).indices.tolist()) == set(said.tolist())


@pytest.mark.parametrize("size", [4096, 1024])
def test_rows_that_were_folded_onto_a_tile_are_found_again(size: int) -> None:
    torch.manual_seed(0)
    kind, source, cpu = RankOnePool(size), Source(pool_key(3)), torch.device("cpu")
    head, said = torch.randn(TOKENS, HIDDEN), [5, 64, 69, 200]
    gradient = torch.zeros(TOKENS, HIDDEN)
    for token in said:
        gradient[token] = -head[token]
    seen = BoundSpace(kind, pool_key(3), pooled=True).projection()
    seen.add(NAME, gradient)
    update = seen.mean().scaled(-0.1)
    rows = atoms(
        head, kind.row_signs(source, NAME, TOKENS, cpu), kind.column_signs(source, NAME, HIDDEN, cpu), kind.tile[1]
    )  # fmt: skip
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(TOKENS))
    assert set(pursue(kind.core(update), rows).topk(len(said)).indices.tolist()) == set(said)


def bags(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token sets, and uploads that are linear in them, of more numbers than tokens."""
    draw = np.random.default_rng(seed)
    tokens = (draw.random((count, 40)) < np.linspace(0.02, 0.6, 40)).astype(float)
    return tokens, tokens @ np.random.default_rng(99).normal(size=(40, 200))


def test_uploads_that_are_linear_in_the_tokens_teach_them_and_those_of_another_batch_do_not() -> None:
    (known, uploads), (secret, sent) = bags(300, 0), bags(20, 1)
    reference = Reference(uploads @ uploads.T, known, np.ones(300))
    found = reference.learned(sent @ uploads.T, np.square(sent).sum(axis=1), 1, np.random.default_rng(2))
    assert ((found > 0.5) == (secret > 0)).mean() > 0.999
    wrong = np.roll(found, 1, axis=0)
    assert ((wrong > 0.5) == (secret > 0)).mean() < 0.85


def test_tokens_of_a_batch_are_learnt_from_batches_that_are_made_up() -> None:
    (known, uploads), (more, others) = bags(300, 0), bags(4, 5)
    sent = others.mean(axis=0)
    reference = Reference(uploads @ uploads.T, known, np.ones(300))
    found = reference.learned((uploads @ sent)[None], np.array([sent @ sent]), 4, np.random.default_rng(2))[0]
    said = set(np.flatnonzero(more.sum(axis=0)).tolist())
    guessed, frequent = (set(np.argsort(-one)[: len(said)].tolist()) for one in (found, known.mean(axis=0)))
    assert len(guessed & said) > len(frequent & said)
    assert len(guessed & said) >= 0.9 * len(said)


def test_with_nothing_to_learn_the_most_frequent_tokens_are_guessed() -> None:
    known, _ = bags(300, 0)
    reference = Reference(np.ones((300, 300)), known, np.ones(300))
    found = reference.learned(np.ones((1, 300)), np.ones(1), 1, np.random.default_rng(2))
    np.testing.assert_allclose(found[0], known.mean(axis=0), atol=1e-9)


def test_a_sketch_keeps_products_and_short_vectors() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 50_000)
    b += a
    short = a[:64]
    assert torch.equal(sketch(short, 64), short)
    mine, other = sketch(a, 4096), sketch(b, 4096)
    assert torch.equal(mine, sketch(a.clone(), 4096))
    assert len(mine) == 4096
    spread = float(a.norm() * b.norm()) / 64
    assert abs(float(mine @ other) - float(a @ b)) < 5 * spread
