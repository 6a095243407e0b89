"""A Hugging Face tokenizer as llama.cpp's vocabulary; what cannot be translated exactly is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import ModelError
from edgetune.core.pretokenizer import PRE_TOKENIZERS, identify
from edgetune.export.speech import Speech, automatic, special_ids, untranslatable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types."""

PHI3_PLAIN = frozenset({"<unk>", "<s>", "<|endoftext|>"})
PHI3_TOKENS = PHI3_PLAIN | {"</s>"}
"""Tokens that llama.cpp looks up in a model named after Phi-3; only these three keep the spaces behind them."""

SPACE = "▁"
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF stores of a tokenizer.

    Args:
        model: `gpt2` (byte-level BPE) or `llama` (SentencePiece-like BPE with byte tokens).
        pre: name of the pre-tokenizer in llama.cpp.
        tokens: by id, as many as the embedding matrix has rows; no two are equal.
        types: llama.cpp token type of each.
        merges: `left right` in order of rank, for `gpt2`.
        scores: the higher, the earlier a token is merged, for `llama`.
        ids: role (`bos`, `eos`, `eot`, ..., `unknown`, `padding`) to id.
        flags: `add_bos_token`, `add_eos_token` and, for `llama`, `add_space_prefix`.
        chat_template: Jinja source, or None.
        strips: whether special tokens swallow the spaces behind them, as Phi-3's do.
        composes: whether the tokenizer composes characters (NFC) before it looks at them, which llama.cpp does not.
        notes: what is written otherwise than the tokenizer's own files say, for a person.
    """

    model: str
    pre: str
    tokens: tuple[str, ...] = field(repr=False)
    types: tuple[int, ...] = field(repr=False)
    merges: tuple[str, ...] | None = field(repr=False)
    scores: tuple[float, ...] | None = field(repr=False)
    ids: dict[str, int]
    flags: dict[str, bool]
    chat_template: str | None = field(repr=False)
    strips: bool
    composes: bool
    notes: tuple[str, ...]


def vocabulary(
    tokenizer: PreTrainedTokenizerBase, size: int, speech: Speech, *, pre_tokenizer: str | None = None
) -> Vocabulary:
    """Translate a tokenizer so that llama.cpp makes the ids that the model is trained on.

    A start token is added by itself only if the texts begin with it: a template without one gets a file without one.
    The end token is never added to a prompt. Tokens beyond the rows of the embedding matrix are left out, since no
    model can read them; rows without a token get unused ones.

    Args:
        tokenizer: a fast tokenizer whose model is BPE, byte-level or with byte fallback.
        size: rows of the embedding matrix.
        speech: what the model is trained on.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it cannot be identified.

    Raises:
        ModelError: if the tokenizer is slow or of another kind, nothing ends an answer, or it normalises text in a
            way llama.cpp does not.
    """
    description = describe(tokenizer)
    model = description["model"]
    if model["type"] != "BPE":
        raise untranslatable(
            f"a tokenizer of type {model['type']}", "byte-level BPE and BPE with byte fallback are supported"
        )
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise untranslatable("a BPE with dropout, prefixes or suffixes", "llama.cpp has no such model")
    notes: list[str] = []
    tokens, types = _tokens(description, size, notes)
    ids = special_ids(tokenizer, speech, size)
    flags = automatic(tokenizer, speech, notes)
    merges = [_merge(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        flags["add_space_prefix"] = _space_prefix(description) and not _begins_special(
            description, speech, notes
        )
        if pre_tokenizer not in (None, "default"):
            raise untranslatable(
                f"a pre-tokenizer {pre_tokenizer!r} for a BPE with byte fallback", "leave it out"
            )
        types = [BYTE if token in BYTE_TOKENS else kind for token, kind in zip(tokens, types, strict=True)]
        return Vocabulary(
            "llama",
            "default",
            tuple(tokens),
            tuple(types),
            None,
            tuple(_scores(tokens, merges)),
            ids,
            flags,
            speech.template,
            strips=_strips(description),
            composes=False,
            notes=tuple(notes),
        )
    composes = _composes(description)
    if pre_tokenizer is not None and pre_tokenizer not in PRE_TOKENIZERS.values():
        raise untranslatable(
            f"the pre-tokenizer {pre_tokenizer!r}",
            f"choose from {', '.join(sorted(PRE_TOKENIZERS.values()))}",
        )
    pre = pre_tokenizer or identify(description)
    return Vocabulary(
        "gpt2",
        pre,
        tuple(tokens),
        tuple(types),
        tuple(_possible(merges, tokens)),
        None,
        ids,
        flags,
        speech.template,
        strips=_strips(description),
        composes=composes,
        notes=tuple(notes),
    )


def describe(tokenizer: PreTrainedTokenizerBase) -> Json:
    """Return the content of a tokenizer's `tokenizer.json`.

    Raises:
        ModelError: if it is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("only fast tokenizers (tokenizer.json) can be exported", where="tokenizer")
    found: Json = json.loads(backend.to_str())
    return found


def _tokens(description: Json, size: int, notes: list[str]) -> tuple[list[str], list[int]]:
    """Return the tokens by id and their types, one a row."""
    by_id: dict[int, str] = {index: token for token, index in description["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for added in description["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    beyond = sorted(index for index in by_id if index >= size)
    if beyond:
        some = ", ".join(repr(by_id[index]) for index in beyond[:3])
        notes.append(f"tokens without a row in the embeddings are left out: {some}")
    unknown = description["model"].get("unk_token")
    kinds |= {index: UNKNOWN for index, token in by_id.items() if token == unknown}
    taken = set(by_id.values())
    fillers = {index: _filler(index, taken) for index in range(size) if index not in by_id}
    return (
        [by_id.get(index, fillers.get(index, "")) for index in range(size)],
        [kinds.get(index, UNUSED) for index in range(size)],
    )


def _strips(description: Json) -> bool:
    """Say whether the special tokens swallow the spaces behind them exactly as llama.cpp lets Phi-3's do.

    llama.cpp knows of that only by the model's name; what other tokenizers swallow is left to the comparison of texts.
    """
    added = description["added_tokens"]
    swallowing = {one["content"] for one in added if one["rstrip"]}
    names = {one["content"] for one in added}
    return bool(swallowing) and names >= PHI3_TOKENS and swallowing == names - PHI3_PLAIN


def _filler(index: int, taken: Container[str]) -> str:
    """Name a row that no text reaches, as no other token is named: llama.cpp refuses two equal ones."""
    return next(name for name in _names(index) if name not in taken)


def _names(index: int) -> Iterator[str]:
    yield f"[PAD{index}]"
    for number in itertools.count(1):
        yield f"[PAD{index}.{number}]"


def _merge(merge: str | list[str]) -> str:
    """Return a merge as llama.cpp reads it: two tokens with a space between."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2 or any(" " in part for part in parts):
        raise untranslatable(
            f"the merge {merge!r}", "llama.cpp separates the two tokens of a merge by a space"
        )
    return " ".join(parts)


def _steps(part: Json | None, key: str) -> list[Json]:
    """Flatten a normalizer or pre-tokenizer into the list of its steps."""
    if part is None:
        return []
    return (
        [step for child in part[key] for step in _steps(child, key)] if part["type"] == "Sequence" else [part]
    )


def _composes(description: Json) -> bool:
    """Return whether the tokenizer composes characters first; refuse every other normalizer.

    NFC changes nothing in text that is composed already, as nearly all is.
    """
    kinds = {step["type"] for step in _steps(description["normalizer"], "normalizers")}
    if kinds - {"NFC"}:
        raise untranslatable(
            f"the normalizer {', '.join(sorted(kinds))}", "llama.cpp encodes the text as it is"
        )
    return bool(kinds)


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
            raise untranslatable(
                f"the normalizer {step}", "llama.cpp's SentencePiece only replaces and prepends spaces"
            )
        prefix |= is_prefix
    for step in _steps(description["pre_tokenizer"], "pretokenizers"):
        is_metaspace = step["type"] == "Metaspace" and step["replacement"] == SPACE
        is_split = step["type"] == "Split" and step["pattern"] == {"String": " "}
        if not (is_metaspace or is_split):
            raise untranslatable(
                f"the pre-tokenizer {step}", "llama.cpp's SentencePiece only replaces and prepends spaces"
            )
        prefix |= is_metaspace and step["prepend_scheme"] != "never"
    return prefix


def _begins_special(description: Json, speech: Speech, notes: list[str]) -> bool:
    """Return whether the space is for the very beginning only, where the texts have a special token.

    llama.cpp puts its space after every special token too. A tokenizer that does not (`prepend_scheme: first`) agrees
    with it where nothing stands before the text, and with no space at all where the texts begin with a special token.
    """
    steps = _steps(description["pre_tokenizer"], "pretokenizers")
    first = any(step["type"] == "Metaspace" and step["prepend_scheme"] == "first" for step in steps)
    special = [added["content"] for added in description["added_tokens"]]
    if not (first and any(speech.text.startswith(token) for token in special)):
        return False
    notes.append("add_space_prefix is false: what the model is trained on begins with a special token")
    return True


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Turn merge ranks into SentencePiece scores: minus the first rank that makes the token.

    Tokens no merge makes (characters, bytes, added tokens) rank last; llama.cpp never looks their score up
    unless it merges into them.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _possible(merges: Sequence[str], tokens: Sequence[str]) -> list[str]:
    """Leave out merges into tokens that have no row."""
    known = set(tokens)
    return [merge for merge in merges if merge.replace(" ", "") in known]
