"""A Hugging Face tokenizer as llama.cpp's vocabulary; what cannot be translated exactly is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import ModelError
from edgetune.export.pretokenizer import PRE_TOKENIZERS, identify

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types."""

SPACE = "▁"
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF stores of a tokenizer.

    Args:
        model: `gpt2` (byte-level BPE) or `llama` (SentencePiece-like BPE with byte tokens).
        pre: name of the pre-tokenizer in llama.cpp.
        tokens: by id, padded to the rows of the embedding matrix.
        types: llama.cpp token type of each.
        merges: `left right` in order of rank, for `gpt2`.
        scores: the higher, the earlier a token is merged, for `llama`.
        ids: role (`bos`, `eos`, `eot`, `unknown`, `padding`) to id.
        flags: `add_bos_token`, `add_eos_token` and, for `llama`, `add_space_prefix`.
        chat_template: Jinja source, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    ids: dict[str, int]
    flags: dict[str, bool]
    chat_template: str | None = field(repr=False)


def vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    *,
    pre_tokenizer: str | None = None,
    stop_ids: Sequence[int] = (),
) -> Vocabulary:
    """Translate a tokenizer.

    Args:
        tokenizer: a fast tokenizer whose model is BPE, byte-level or with byte fallback.
        size: rows of the embedding matrix; missing tokens are filled with unused ones.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it cannot be identified.
        stop_ids: further ids that end an answer (`generation_config.eos_token_id`).

    Raises:
        ModelError: if the tokenizer is slow, of another kind, larger than `size`, has no end-of-sequence
            token, or normalises text in a way llama.cpp does not.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("only fast tokenizers (tokenizer.json) can be exported", where="tokenizer")
    description: Json = json.loads(backend.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        _refuse(
            f"a tokenizer of type {model['type']}", "byte-level BPE and BPE with byte fallback are supported"
        )
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        _refuse("a BPE with dropout, prefixes or suffixes", "llama.cpp has no such model")
    tokens, types = _tokens(description, size)
    ids = _ids(tokenizer, stop_ids)
    flags = _automatic(tokenizer)
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        flags["add_space_prefix"] = _space_prefix(description)
        if pre_tokenizer not in (None, "default"):
            _refuse(f"a pre-tokenizer {pre_tokenizer!r} for a BPE with byte fallback", "leave it out")
        types = [BYTE if token in BYTE_TOKENS else kind for token, kind in zip(tokens, types, strict=True)]
        return Vocabulary(
            "llama", "default", tokens, types, None, _scores(tokens, merges), ids, flags, template
        )
    _check_normalizer(description)
    if pre_tokenizer is not None and pre_tokenizer not in PRE_TOKENIZERS.values():
        _refuse(f"the pre-tokenizer {pre_tokenizer!r}", f"choose from {', '.join(PRE_TOKENIZERS.values())}")
    pre = pre_tokenizer or identify(description)
    return Vocabulary("gpt2", pre, tokens, types, merges, None, ids, flags, template)


def _refuse(what: str, hint: str) -> None:
    raise ModelError(f"{what} cannot be written as GGUF", where="tokenizer.json", hint=hint)


def _tokens(description: Json, size: int) -> tuple[list[str], list[int]]:
    """Return the tokens by id and their types."""
    by_id: dict[int, str] = {index: token for token, index in description["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for added in description["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if max(by_id) >= size:
        _refuse(f"a token with id {max(by_id)} and embeddings for {size}", "resize the embeddings")
    unknown = description["model"].get("unk_token")
    kinds |= {index: UNKNOWN for index, token in by_id.items() if token == unknown}
    return (
        [by_id.get(index, f"[PAD{index}]") for index in range(size)],
        [kinds.get(index, UNUSED) for index in range(size)],
    )


def _ids(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> dict[str, int]:
    """Return the ids of the special roles.

    llama.cpp takes id 11 for a missing end of a byte-level tokenizer, so one must exist; a missing start is
    given the end's id, and never added to a text because `add_bos_token` is then false.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no answer would ever end",
            where="tokenizer_config.json",
            hint="set eos_token",
        )
    start = tokenizer.bos_token_id
    ids = {"bos": end if start is None else start, "eos": end}
    others = [index for index in stop_ids if index != end]
    if others:
        ids["eot"] = others[0]
    if tokenizer.unk_token_id is not None:
        ids["unknown"] = tokenizer.unk_token_id
    if tokenizer.pad_token_id is not None:
        ids["padding"] = tokenizer.pad_token_id
    return ids


def _automatic(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Find by experiment which tokens the tokenizer puts around a text by itself.

    Raises:
        ModelError: if it adds anything but its start and end tokens.
    """
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, after in (([], []), (start, []), ([], end), (start, end)):
        if full == [*before, *bare, *after]:
            return {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    _refuse("a post-processor that adds more than a start and an end token", f"it makes {full} of {bare}")
    raise AssertionError  # pragma: no cover


def _steps(part: Json | None, key: str) -> list[Json]:
    """Flatten a normalizer or pre-tokenizer into the list of its steps."""
    if part is None:
        return []
    return (
        [step for child in part[key] for step in _steps(child, key)] if part["type"] == "Sequence" else [part]
    )


def _check_normalizer(description: Json) -> None:
    """Refuse normalizers llama.cpp cannot follow.

    NFC is let through: Qwen has it, llama.cpp ignores it, and it changes only texts that are not composed;
    `verify` compares the ids of real texts.
    """
    kinds = {step["type"] for step in _steps(description["normalizer"], "normalizers")}
    if kinds - {"NFC"}:
        _refuse(f"the normalizer {', '.join(sorted(kinds))}", "llama.cpp encodes the text as it is")


def _space_prefix(description: Json) -> bool:
    """Return whether a SentencePiece-like tokenizer puts a space before a text.

    Raises:
        ModelError: if it changes the text otherwise.
    """
    prefix = False
    for step in _steps(description["normalizer"], "normalizers"):
        is_prefix = step == {"type": "Prepend", "prepend": SPACE}
        is_space = step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        if not (is_prefix or is_space):
            _refuse(f"the normalizer {step}", "llama.cpp's SentencePiece only replaces and prepends spaces")
        prefix |= is_prefix
    for step in _steps(description["pre_tokenizer"], "pretokenizers"):
        is_metaspace = step["type"] == "Metaspace" and step["replacement"] == SPACE
        is_split = step["type"] == "Split" and step["pattern"] == {"String": " "}
        if not (is_metaspace or is_split):
            _refuse(
                f"the pre-tokenizer {step}", "llama.cpp's SentencePiece only replaces and prepends spaces"
            )
        prefix |= is_metaspace and step["prepend_scheme"] != "never"
    return prefix


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Turn merge ranks into SentencePiece scores: minus the first rank that makes the token.

    Tokens no merge makes (characters, bytes, added tokens) rank last; llama.cpp never looks their score up
    unless it merges into them.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]
