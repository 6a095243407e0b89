"""How a record becomes text: the prompt a model is given and the response it should continue with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgetune.core.errors import ConfigError
from edgetune.data.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:"
)
_WITHOUT_CONTEXT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


class Prompt(Protocol):
    """Any renderer: a frozen value that turns a record into (prompt text, response text)."""

    name: ClassVar[str]
    add_special_tokens: ClassVar[bool]
    """Whether tokenising must add the tokenizer's own prefix (BOS); False where the text already carries it."""

    def __call__(self, record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Return the prompt and the response; their concatenation is the full text."""


@dataclass(frozen=True, slots=True)
class Alpaca:
    """The Stanford-Alpaca template, with its input section only where the record has a context.

        prompt = "... ### Instruction:\\n{instruction}\\n\\n### Input:\\n{context}\\n\\n### Response:"
        response = response + eos

    Returns:
        (prompt, response); the response ends with the end-of-sequence token where the tokenizer has one.
    Source: tatsu-lab/stanford_alpaca `train.py`, the template of FedKSeed and Shepherd.
    """

    name: ClassVar[str] = "alpaca"
    add_special_tokens: ClassVar[bool] = True

    def __call__(self, record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Return the prompt and the response."""
        template = _WITH_CONTEXT if record.context else _WITHOUT_CONTEXT
        prompt = template.format(instruction=record.instruction, context=record.context)
        return prompt, record.response + (tokenizer.eos_token or "")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The tokenizer's own chat template: one user turn and one assistant turn.

        user = instruction, or instruction + "\\n\\n" + context
        prompt = render(user, generation prompt);  prompt + response = render(user, assistant)

    The response is cut after its last special token (what follows the end of the turn is never generated); a template
    that marks no end gets the end-of-sequence token.

    Returns:
        (prompt, response).

    Raises:
        ConfigError: the tokenizer has no chat template, the template refuses the turns, or its full text does not
            start with its prompt, so that what is trained on is not what is asked for.
    """

    name: ClassVar[str] = "chat"
    add_special_tokens: ClassVar[bool] = False

    def __call__(self, record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Return the prompt and the response."""
        asked = f"{record.instruction}\n\n{record.context}" if record.context else record.instruction
        user = {"role": "user", "content": asked}
        prompt = _render(tokenizer, [user], True)
        full = _render(tokenizer, [user, {"role": "assistant", "content": record.response}], False)
        if not full.startswith(prompt):
            raise ConfigError(
                "the tokenizer's chat template renders a finished turn that does not start with its prompt",
                hint="use the Alpaca prompt with this model",
            )
        return prompt, _ended(full[len(prompt) :], record.response.rstrip(), tokenizer)


PROMPTS: dict[str, Alpaca | ChatTemplate] = {prompt.name: prompt for prompt in (Alpaca(), ChatTemplate())}
"""Every renderer by its public name."""


def default_prompt(tokenizer: PreTrainedTokenizerBase) -> Alpaca | ChatTemplate:
    """Return `ChatTemplate()` for a tokenizer that has a chat template, else `Alpaca()`."""
    return ChatTemplate() if tokenizer.chat_template else Alpaca()


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], generation: bool) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
    except (TemplateError, ValueError) as error:
        hint = "use the Alpaca prompt with this model"
        raise ConfigError(
            f"the tokenizer's chat template cannot render a record: {error}", hint=hint
        ) from error
    return str(text)


def _ended(tail: str, response: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut a rendered assistant turn after its end marker, looking only behind the response itself."""
    behind = tail.rfind(response) + len(response) if response in tail else 0
    specials = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    ends = [at + len(token) for token in specials if token and (at := tail.rfind(token, behind)) >= 0]
    return tail[: max(ends)] if ends else tail + (tokenizer.eos_token or "")
