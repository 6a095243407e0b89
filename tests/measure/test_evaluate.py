from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError, DataError, ModelError
from edgetune.measure.evaluate import HeldOut, end_tokens, generate, held_out_loss

ROWS = [([5, 6, 7, 8, 9], 2), ([3, 4], 1), ([10, 11, 12], 1)]
TEXTS = ["the quick", "a fox jumped over it", "z", "lazy dog, the quick brown fox", "\n"]


def batch(rows: list[tuple[list[int], int]]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    labels = ids.masked_fill(mask == 0, IGNORED)
    for index, (_, start) in enumerate(rows):
        labels[index, :start] = IGNORED
    return Batch(ids, mask, labels)


def by_hand(model: nn.Module) -> float:
    total, count = 0.0, 0
    for ids, start in ROWS:
        with torch.no_grad():
            scores = functional.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        total -= sum(float(scores[t - 1, ids[t]]) for t in range(start, len(ids)))
        count += len(ids) - start
    return total / count


def test_the_loss_is_the_mean_over_all_response_tokens(model: PreTrainedModel) -> None:
    for batches in ([batch(ROWS)], [batch(ROWS[:2]), batch(ROWS[2:])], [batch([row]) for row in ROWS]):
        measured = held_out_loss(model, batches)
        assert measured.loss == pytest.approx(by_hand(model), rel=1e-5)
        assert measured.perplexity == math.exp(measured.loss)
        assert measured.tokens == 6


def test_the_model_is_left_as_it_was(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    model.train()
    held_out_loss(model, [batch(ROWS)])
    generate(model, tokenizer, [[1]], max_new_tokens=1, batch_size=1)
    assert model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


class Constant(nn.Module):
    """A model that gives every token the same logits, without a cache."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: object) -> object:
        class Output:
            logits = self.logits.expand(*input_ids.shape, -1)
            past_key_values = None

        return Output()


def test_hopeless_losses_are_passed_on() -> None:
    one = [batch([([0, 1], 1)])]
    assert held_out_loss(Constant(5000.0, 0.0), one) == HeldOut(5000.0, math.inf, 1)
    lost = held_out_loss(Constant(math.nan, 0.0), one)
    assert math.isnan(lost.loss)
    assert math.isnan(lost.perplexity)


def test_no_response_token_is_an_error(model: PreTrainedModel) -> None:
    for batches in ([], [batch([([1, 2], 2)])]):
        with pytest.raises(DataError, match="no response token"):
            held_out_loss(model, batches)


def test_answers_do_not_depend_on_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    alone = [generate(model, tokenizer, [prompt], max_new_tokens=16, batch_size=1)[0] for prompt in prompts]
    assert len(set(alone)) > 1
    for size in (2, 3, 8):
        assert generate(model, tokenizer, prompts, max_new_tokens=16, batch_size=size) == alone
    assert capfd.readouterr() == ("", "")


def by_a_loop(model: PreTrainedModel, ids: list[int], ends: set[int]) -> list[int]:
    """Greedy answer of 16 tokens at most, the whole text at every step."""
    start = len(ids)
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        while len(ids) < start + 16:
            token = int(model(input_ids=torch.tensor([ids]), **options).logits[0, -1].argmax())
            if token in ends:
                break
            ids = [*ids, token]
    return ids[start:]


def test_answers_are_those_of_a_loop_without_cache(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=2.0)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        expected = tokenizer.decode(by_a_loop(model, ids, {256}), skip_special_tokens=True).strip()
        assert generate(model, tokenizer, [ids], max_new_tokens=16, batch_size=1) == [expected]


def test_models_without_a_key_value_cache_answer_as_well(
    odd_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    answers = [by_a_loop(odd_model, ids, {256}) for ids in prompts]
    expected = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]
    assert len(set(expected)) > 1
    settings = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=2.0, num_beams=3)
    odd_model.generation_config = settings
    assert generate(odd_model, tokenizer, prompts, max_new_tokens=16, batch_size=3) == expected
    assert odd_model.generation_config is settings
    first = answers[0][0]
    odd_model.generation_config = GenerationConfig(eos_token_id=[first, 7])
    ended = [by_a_loop(odd_model, ids, {256, first, 7}) for ids in prompts]
    expected = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in ended]
    assert generate(odd_model, tokenizer, prompts, max_new_tokens=16, batch_size=3) == expected
    assert expected[0] == ""
    assert capfd.readouterr() == ("", "")


def test_the_loss_of_models_without_a_cache_does_not_depend_on_the_batch(odd_model: PreTrainedModel) -> None:
    alone = held_out_loss(odd_model, [batch([row]) for row in ROWS]).loss
    assert held_out_loss(odd_model, [batch(ROWS)]).loss == pytest.approx(alone, rel=1e-4)


class Holder:
    def __init__(self, named: object) -> None:
        self.eos_token_id = named


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        (5, {5}),
        ([5, 6], {5, 6}),
        ((5,), {5}),
        (None, set()),
        (-1, set()),
        ([], set()),
        ("5", set()),
        (True, set()),
    ],
)
def test_ends_are_token_ids_and_nothing_else(named: object, ends: set[int]) -> None:
    model: Any = nn.Linear(1, 1)
    model.generation_config, model.config = Holder(named), Holder(None)
    tokenizer: Any = Holder(9)
    assert end_tokens(model, tokenizer) == ends | {9}


def test_an_answer_ends_at_any_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("the quick").input_ids
    with torch.no_grad():
        first = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [first, 256]
    other = tokenizer("a fox jumped over it").input_ids
    with torch.no_grad():
        assert int(model(input_ids=torch.tensor([other])).logits[0, -1].argmax()) != first
    stopped, going = generate(model, tokenizer, [ids, other], max_new_tokens=4, batch_size=2)
    assert stopped == ""
    assert going == generate(model, tokenizer, [other], max_new_tokens=4, batch_size=1)[0]


def test_progress_counts_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        model,
        tokenizer,
        [[1]] * 5,
        max_new_tokens=1,
        batch_size=2,
        on_progress=lambda done, all_: seen.append((done, all_)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert generate(model, tokenizer, [], max_new_tokens=1, batch_size=2) == []


def test_refuses_what_cannot_be_answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    for options in ({"max_new_tokens": 0, "batch_size": 1}, {"max_new_tokens": 1, "batch_size": 0}):
        with pytest.raises(ConfigError):
            generate(model, tokenizer, [[1]], **options)
    with pytest.raises(DataError, match="without a token"):
        generate(model, tokenizer, [[1], []], max_new_tokens=1, batch_size=1)
    with pytest.raises(ConfigError, match="need 65 tokens, the model holds 64"):
        generate(model, tokenizer, [[1] * 60], max_new_tokens=5, batch_size=1)
    generate(model, tokenizer, [[1] * 60], max_new_tokens=4, batch_size=1)


def test_a_model_without_a_cache_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="no key-value cache"):
        generate(Constant(1.0, 0.0), tokenizer, [[1]], max_new_tokens=3, batch_size=1)
