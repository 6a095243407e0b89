"""How a model is spoken to, and what that makes of its special tokens in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import ModelError
from edgetune.core.template import Templates

END_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Keys whose tokens end an answer in llama.cpp, in the order in which ends are given to them.

Source: llama.cpp `llama_vocab::impl::load`, `special_eog_ids`.
"""


@dataclass(frozen=True, slots=True)
class Speech:
    """How a model is spoken to: what it is trained on, and what its file must reproduce.

    Args:
        text: the beginning of a text it is trained on; all of them begin alike.
        ids: the ids of that text.
        ends: ids that end an answer, the one trained responses end with first.
        template: chat template that makes such texts; None if there is none.
    """

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    template: str | None = field(repr=False)


def speech_of(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> Speech:
    """Return how a tokenizer's own chat template speaks to a model, or a plain text where it has none.

    Args:
        tokenizer: any.
        ends: ids that end an answer.

    Raises:
        ConfigError: the template fails.
    """
    template: Any = tokenizer.chat_template
    template = template.get("default") if isinstance(template, Mapping) else template
    if template is None:
        return Speech("a", tuple(tokenizer("a").input_ids), tuple(ends), None)
    with Templates(template, tokenizer.special_tokens_map) as templates:
        (text,) = templates.render([([{"role": "user", "content": "Say hello."}], True)])
    if not isinstance(text, str):
        raise text
    return Speech(text, tuple(tokenizer(text, add_special_tokens=False).input_ids), tuple(ends), template)


def special_ids(tokenizer: PreTrainedTokenizerBase, speech: Speech, size: int) -> dict[str, int]:
    """Return the ids of the special roles.

    The token that trained responses end with is `eos`, unless the template speaks of the tokenizer's own, which it
    would then render differently. llama.cpp takes id 11 for a missing end of a byte-level tokenizer, so one must
    exist; a missing start is given the end's id, and never added because `add_bos_token` is then false.
    """
    own = tokenizer.eos_token_id
    ends = list(dict.fromkeys(index for index in (*speech.ends, own) if index is not None and index < size))
    if not ends:
        raise ModelError(
            "no token ends an answer, so none would ever end",
            where="tokenizer_config.json",
            hint="set eos_token",
        )
    if own in ends and "eos_token" in _variables(speech.template):
        ends = [own, *(index for index in ends if index != own)]
    if len(ends) > len(END_ROLES):
        raise ModelError(
            f"{len(ends)} tokens end an answer, a GGUF file has room for {len(END_ROLES)}",
            where="generation_config.json",
            hint="shorten eos_token_id",
        )
    ids = dict(zip(END_ROLES, ends, strict=False))
    start = tokenizer.bos_token_id
    ids["bos"] = ids["eos"] if start is None or start >= size else start
    for role, index in (("unknown", tokenizer.unk_token_id), ("padding", tokenizer.pad_token_id)):
        if index is not None and index < size:
            ids[role] = index
    return ids


def _variables(template: str | None) -> set[str]:
    """Return the names that a template takes from outside; none if it cannot be read, which rendering will say."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return set(jinja2.meta.find_undeclared_variables(environment.parse(template or "")))
    except (jinja2.TemplateError, RecursionError):
        return {"eos_token"} if "eos_token" in (template or "") else set()


def automatic(tokenizer: PreTrainedTokenizerBase, speech: Speech, notes: list[str]) -> dict[str, bool]:
    """Find by experiment which tokens the tokenizer puts around a text by itself, and which llama.cpp should.

    Raises:
        ModelError: if it adds anything but its start and end tokens.
    """
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, after in (([], []), (start, []), ([], end), (start, end)):
        if full == [*before, *bare, *after]:
            begins = list(speech.ids[:1]) == start
            if before and not begins:
                notes.append("add_bos_token is false: what the model is trained on has no start token")
            if after:
                notes.append("add_eos_token is false: an end token behind a prompt would end the answer")
            return {"add_bos_token": bool(before) and begins, "add_eos_token": False}
    raise untranslatable(
        "a post-processor that adds more than a start and an end token", f"it makes {full} of {bare}"
    )


def untranslatable(what: str, hint: str) -> ModelError:
    """Return the error about a part of a tokenizer that llama.cpp has not."""
    return ModelError(f"{what} cannot be written as GGUF", where="tokenizer.json", hint=hint)
