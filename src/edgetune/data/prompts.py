"""How a record becomes text: the prompts that can be chosen by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.data.chat import ChatTemplate
from edgetune.data.controls import Controls
from edgetune.data.records import Record
from edgetune.data.turns import Frame, Prompt, Renderer, Turn, folded, plain_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROMPTS", "Alpaca", "ChatTemplate", "FedKSeed", "default_prompt"]

_SECTIONS = "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:"
_FIRST = "Below is an instruction that describes a task"
_ALPACA = "Write a response that appropriately completes the request.\n\n"
_FEDKSEED = "Write a response for the task request.\n\n"


@contextmanager
def sections(
    with_context: str, without_context: str, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Renderer]:
    """Open a renderer of two texts with places for `{instruction}` and `{context}`, ended by the end of sequence."""
    yield _Sections(with_context, without_context, tokenizer)


class _Sections:
    def __init__(self, with_context: str, without_context: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._texts = with_context, without_context
        self._controls = Controls(tokenizer)
        self._end = str(tokenizer.eos_token or "")
        self.frame = Frame(ends=(self._end,) if self._end else ())

    def turns(self, records: Sequence[Record]) -> list[Turn]:
        return [self._turn(self.frame.without_own_end(record)) for record in records]

    def _turn(self, given: Record) -> Turn:
        if given.plain:
            return plain_turn(given, self._end, self._controls)
        record = folded(given)
        text, fields = "", list[tuple[int, int]]()
        for user, assistant in zip(record.history[::2], record.history[1::2], strict=True):
            text = self._asked(text, fields, {"instruction": user.text})
            fields.append((len(text), len(text) + len(assistant.text)))
            text += assistant.text + self._end
        last = {"instruction": record.instruction, "context": record.context}
        prompt = self._asked(
            text, fields, {name: said for name, said in last.items() if said or name != "context"}
        )
        fields.append((len(prompt), len(prompt) + len(record.response)))
        response = record.response + self._end
        return Turn(prompt, response, self._controls.quoted(prompt + response, fields))

    def _asked(self, text: str, fields: list[tuple[int, int]], said: Mapping[str, str]) -> str:
        """Return a text with a question behind it, and note where the record stands in it."""
        rest = self._texts[0 if "context" in said else 1]
        for name, value in said.items():
            before, rest = rest.split("{" + name + "}", 1)
            start = len(text) + len(before)
            fields.append((start, start + len(value)))
            text += before + value
        return text + rest


@dataclass(frozen=True, slots=True)
class Alpaca:
    """The Stanford-Alpaca template, with its input section only where the record has a context.

        prompt = "... ### Instruction:\\n{instruction}\\n\\n### Input:\\n{context}\\n\\n### Response:"
        response = response + eos

    The response ends with the end-of-sequence token where the tokenizer has one. Earlier exchanges of a conversation
    stand before it, each as such a text; what the system said begins the first question.

    Source: tatsu-lab/stanford_alpaca `train.py`; FedKSeed's code uses it for Natural Instructions.
    """

    name: ClassVar[str] = "alpaca"
    add_special_tokens: ClassVar[bool] = True

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[Renderer]:
        """Open a renderer."""
        return _published(_ALPACA, tokenizer)


@dataclass(frozen=True, slots=True)
class FedKSeed:
    """The template of FedKSeed's published Dolly-15K runs: Alpaca's, with a request in other words.

        "Write a response for the task request."  instead of
        "Write a response that appropriately completes the request."

    Source: zhenqincn/FedKSeed (alibaba/FederatedScope, branch FedKSeed) `utils_data/llm_dataset.py`, arXiv 2312.06353.
    """

    name: ClassVar[str] = "fedkseed"
    add_special_tokens: ClassVar[bool] = True

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[Renderer]:
        """Open a renderer."""
        return _published(_FEDKSEED, tokenizer)


def _published(request: str, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[Renderer]:
    paired = f"{_FIRST}, paired with an input that provides further context. {request}{_SECTIONS}"
    alone = f"{_FIRST}. {request}{_SECTIONS}".replace("### Input:\n{context}\n\n", "")
    return sections(paired, alone, tokenizer)


PROMPTS: dict[str, Prompt] = {prompt.name: prompt for prompt in (Alpaca(), ChatTemplate(), FedKSeed())}
"""Every prompt by its public name."""


def default_prompt(tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Return `ChatTemplate()` for a tokenizer that has a chat template, else `Alpaca()`."""
    return ChatTemplate() if tokenizer.chat_template else Alpaca()
