"""Records as examples, and what was found in them on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgetune.core.errors import ConfigError
from edgetune.core.events import DataPrepared
from edgetune.data.controls import unknown_characters
from edgetune.data.encode import Encoded, Example, encode_fitting, shorten
from edgetune.data.prompts import PROMPTS, default_prompt
from edgetune.data.records import Record
from edgetune.data.turns import Prompt, Renderer
from edgetune.measure.evaluate import end_tokens
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone, rows_of
from edgetune.recipe.recipe import Recipe


class Encoder:
    """Encodes records, and keeps count of what it finds in them."""

    def __init__(self, backbone: Backbone, prompt: Prompt, renderer: Renderer, longest: int) -> None:
        self._backbone, self._prompt, self._renderer, self._longest = backbone, prompt, renderer, longest
        self._rows = rows_of(backbone)
        self._tally, self._last = Counter[str](), Counter[int]()
        self._characters: list[frozenset[str]] = []

    def __call__(self, records: Sequence[Record]) -> list[Example]:
        """Return the examples, shortened.

        Raises:
            ConfigError, DataError: as `data.encode.encode_whole`.
        """
        return [one.example for one in self.with_turns(records)]

    def with_turns(self, records: Sequence[Record]) -> list[Encoded]:
        """Return the examples, shortened, with their text.

        Raises:
            ConfigError, DataError: as `data.encode.encode_whole`.
        """
        frame, tokenizer = self._renderer.frame, self._backbone.tokenizer
        encoded = encode_fitting(records, tokenizer, self._prompt, self._renderer, self._longest)
        for record, one in zip(records, encoded, strict=True):
            self._last[one.example.input_ids[-1]] += 1
            self._tally["quoted"] += bool(one.turn.quoted)
            self._tally["framed"] += one.turn.framed
            self._tally["own_ends"] += frame.without_own_end(record) is not record
            self._tally["cut"] += len(one.example.input_ids) > self._longest
            self._tally["forgotten"] += one.dropped
            self._characters.append(frozenset("".join(record.texts)))
        return [replace(one, example=shorten(one.example, self._longest)) for one in encoded]

    @property
    def cut(self) -> int:
        """How many records were shortened."""
        return self._tally["cut"]

    def ends(self) -> tuple[int, ...]:
        """Return every id that ends an answer: first those that responses really end with, the commonest first."""
        tokenizer = self._backbone.tokenizer
        known = {tokenizer.convert_tokens_to_ids(text) for text in self._renderer.frame.ends}
        trained = [index for index, _ in self._last.most_common() if index in known]
        declared = sorted(
            index for index in end_tokens(self._backbone.model, tokenizer) if index < self._rows
        )
        return tuple(dict.fromkeys([*trained, *declared]))

    def found(self, **others: Any) -> DataPrepared:
        """Return the event: what was counted, and what the caller knows."""
        unknown = unknown_characters(self._backbone.tokenizer, frozenset().union(*self._characters))
        return DataPrepared(
            quoted=self._tally["quoted"],
            framed=self._tally["framed"],
            own_ends=self._tally["own_ends"],
            cut=self._tally["cut"],
            forgotten=self._tally["forgotten"],
            unknown=sum(not unknown.isdisjoint(characters) for characters in self._characters),
            characters="".join(sorted(unknown)[:10]),
            **others,
        )


def prompt_of(recipe: Recipe, backbone: Backbone) -> Prompt:
    """Return the prompt template that a recipe names, or the one that the base model's tokenizer asks for."""
    named = recipe.data.prompt
    return default_prompt(backbone.tokenizer) if named == "auto" else PROMPTS[named]


def longest_of(recipe: Recipe, method: TuningMethod, backbone: Backbone) -> int:
    """Return how many tokens a record may have, so that an answer fits behind its prompt.

    Raises:
        ConfigError: the model's context leaves too few.
    """
    lesson = recipe.distillation
    sampled = lesson.max_new_tokens if lesson.wanted and lesson.share else 0
    scored = method.objective.max_new_tokens if method.objective else 0
    answer = max(recipe.evaluation.max_new_tokens, scored, sampled)
    longest = min(recipe.data.max_tokens, context_of(backbone) - answer)
    if longest < 8:
        raise ConfigError(
            f"the model holds {context_of(backbone)} tokens, too few for answers of {answer}",
            where="evaluation.max_new_tokens",
        )
    return longest


def context_of(backbone: Backbone) -> int:
    """Return the greatest number of tokens of a model, a large number where it does not say."""
    return int(getattr(backbone.model.config, "max_position_embeddings", 0) or 1 << 20)
