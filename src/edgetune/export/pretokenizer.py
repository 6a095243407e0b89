"""Which of llama.cpp's pre-tokenizers a `tokenizer.json` describes, told by its structure and never by a hash."""

from __future__ import annotations

from typing import Any

from edgetune.core.errors import ModelError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS, _GPT2, _BYTES = "digits", "gpt-2 words", "bytes"


class UnknownPreTokenizerError(ModelError):
    """A pre-tokenizer whose name in llama.cpp is not known, though it may have one."""


Signature = tuple[tuple[str, ...], bool]

PRE_TOKENIZERS: dict[Signature, str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3, _BYTES), True): "llama-bpe",
    ((_LLAMA3, _BYTES), False): "smaug-bpe",
    ((_QWEN2, _BYTES), False): "qwen2",
    ((_GPT4O, _BYTES), False): "gpt-4o",
}
"""(steps, `ignore_merges`) to llama.cpp's name. `llama-bpe` looks whole words up first, `smaug-bpe` does not."""


def _step(step: dict[str, Any]) -> str:
    """Name one step by what it does; steps llama.cpp has no counterpart of get a name no table row has."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return _GPT2 if step["use_regex"] else _BYTES
    if step["type"] == "Digits" and step["individual_digits"]:
        return _DIGITS
    is_plain = step.get("behavior") == "Isolated" and not step.get("invert")
    return str(step["pattern"].get("Regex", step)) if step["type"] == "Split" and is_plain else str(step)


def identify(description: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level BPE.

    Args:
        description: the content of a `tokenizer.json`.

    Raises:
        UnknownPreTokenizerError: if no row of the table fits.
    """
    found = description["pre_tokenizer"] or {"type": "none", "pretokenizers": []}
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    signature = (tuple(map(_step, steps)), bool(description["model"].get("ignore_merges")))
    if signature not in PRE_TOKENIZERS:
        raise UnknownPreTokenizerError(
            f"the pre-tokenizer is none of those known here: {' then '.join(signature[0])}",
            where="tokenizer.json",
        )
    return PRE_TOKENIZERS[signature]
