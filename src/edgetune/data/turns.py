"""A record as text: the turn, what stands around its answer, and what makes such text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgetune.data.controls import Controls
from edgetune.data.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Turn:
    """A record as text.

    Args:
        prompt: what the model is given.
        response: what it should say after it, up to the end of its turn.
        quoted: places [start, end) in prompt + response where the record itself holds the text of a control token;
            there the text is meant, not the token.
        framed: the template would have rewritten the response, which therefore stands in its frame as it is.
        opening: beginning of the record's response that the prompt already says, for example `<think>`.
        plain: a text without a prompt; the tokenizer puts in front of it what it puts in front of any text.
    """

    prompt: str
    response: str
    quoted: tuple[tuple[int, int], ...] = ()
    framed: bool = False
    opening: str = ""
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around an answer beside the answer.

    Args:
        lead: what the model says before the answer.
        stop: plain text after the answer, where no token ends it.
        ends: texts of the tokens that end an answer, the one that is trained on first.
    """

    lead: str = ""
    stop: str = ""
    ends: tuple[str, ...] = ()

    def answer(self, generated: str, opening: str = "") -> str:
        """Return the answer in what a model said: what is compared with the response of a record.

        Args:
            generated: what followed the prompt.
            opening: of the record's turn.
        """
        text, lead, stop = generated.strip(), self.lead.strip(), self.stop.strip()
        if lead and not opening and text.startswith(lead):
            text = text[len(lead) :].strip()
        if stop:
            text = text.split(stop, 1)[0].strip()
        return opening + text

    def without_own_end(self, record: Record) -> Record:
        """Return a record without end tokens at the end of its answers: a turn gets exactly one, from its prompt."""
        response = self._without(record.response)
        history = tuple(
            replace(one, text=self._without(one.text)) if one.role == "assistant" else one
            for one in record.history
        )
        changed = response != record.response or history != record.history
        return replace(record, response=response, history=history) if changed else record

    def _without(self, text: str) -> str:
        kept = given = text.rstrip()
        while found := next((end for end in self.ends if end and kept.endswith(end)), ""):
            kept = kept[: -len(found)].rstrip()
        return kept if kept and kept != given else text


def plain_turn(record: Record, end: str, controls: Controls) -> Turn:
    """Return a text without a prompt as it is, ended by the end of sequence."""
    text = record.response
    return Turn("", text + end, controls.quoted(text + end, [(0, len(text))]), plain=True)


def folded(record: Record) -> Record:
    """Return a record whose first question begins with what the system said: for prompts without a place for it."""
    if not record.history or record.history[0].role != "system":
        return record
    said, *others = record.history
    if others:
        first = replace(others[0], text=f"{said.text}\n\n{others[0].text}")
        return replace(record, history=(first, *others[1:]))
    return replace(record, instruction=f"{said.text}\n\n{record.instruction}", history=())


class Renderer(Protocol):
    """Turns records into text with one tokenizer."""

    frame: Frame

    def turns(self, records: Sequence[Record]) -> list[Turn]:
        """Return the text of each record, in order.

        Raises:
            ConfigError: the template leaves text of a record out or changes it; names the record.
        """


class Prompt(Protocol):
    """Any way to make text of a record: a frozen value."""

    name: ClassVar[str]
    add_special_tokens: ClassVar[bool]
    """Whether tokenising must add the tokenizer's own prefix (BOS); False where the text already carries it."""

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[Renderer]:
        """Open a renderer; what it holds is given back when the context ends."""
