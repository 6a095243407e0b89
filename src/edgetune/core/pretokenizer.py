"""llama.cpp's pre-tokenizers and the steps of a `tokenizer.json` that do the same; told by structure, never by hash."""

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
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = _QWEN2.replace(r"\p{N}|", r"\p{N}{1}|").replace(
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_PUNCTUATION, _NUMBERS, _THREE_DIGITS = "punctuation", "numbers", "[0-9][0-9][0-9]"
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
    ((_TEKKEN, _BYTES), True): "tekken",
    ((_SEED, _BYTES), False): "seed-coder",
    ((*_DEEPSEEK3, _BYTES), False): "deepseek-v3",
    ((_BLOOM, _BYTES), False): "bloom",
    ((_PUNCTUATION, _GPT2, _NUMBERS, _THREE_DIGITS), False): "falcon",
}
"""(steps, `ignore_merges`) to llama.cpp's name. `llama-bpe` looks whole words up first, `smaug-bpe` does not."""


_ALIASES = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "gpt-2": (
        "phi-2",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "exaone4",
        "gigachat",
        "a.x-4.0",
    ),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo", "solar-open"),
    "smaug-bpe": ("dbrx",),
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
    "bloom": ("poro-chat", "gpt3-finnish"),
}
CANONICAL = {other: name for name, others in _ALIASES.items() for other in others}
"""Names of llama.cpp to the name in `PRE_TOKENIZERS` with the same rules; those that add tokens are left out.

Source: llama.cpp `llama-vocab.cpp`, `llm_tokenizer_bpe` and `llama_vocab::impl::load`.
"""
BEGINS = frozenset({"llama-bpe", "tekken"})
"""Those with which llama.cpp puts a start token in front of a text where the file does not say whether to."""


def _step(step: dict[str, Any]) -> str:
    """Name one step by what it does; steps llama.cpp has no counterpart of get a name no table row has."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return _GPT2 if step["use_regex"] else _BYTES
    if step["type"] == "Digits":
        return _DIGITS if step["individual_digits"] else _NUMBERS
    if step["type"] == "Punctuation" and step["behavior"] == "Contiguous":
        return _PUNCTUATION
    is_plain = step.get("behavior") == "Isolated" and not step.get("invert")
    if step["type"] != "Split" or not is_plain:
        return str(step)
    # Some files hold the control characters themselves where others hold their escapes.
    return str(step["pattern"].get("Regex", step)).replace("\r", r"\r").replace("\n", r"\n")


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


def steps_of(name: str) -> tuple[list[dict[str, Any]], bool]:
    """Return the steps of a `tokenizer.json` that split text as a pre-tokenizer of llama.cpp does, and `ignore_merges`.

    Raises:
        UnknownPreTokenizerError: if the rules of this name are not known here; names those that are.
    """
    signatures = {found: signature for signature, found in PRE_TOKENIZERS.items()}
    found = signatures.get(CANONICAL.get(name, name))
    if found is None:
        raise UnknownPreTokenizerError(
            f"the pre-tokenizer {name[:80]!r} is none of those known here",
            hint=f"known: {', '.join(sorted({*signatures, *CANONICAL}))}",
        )
    return [_written(step) for step in found[0]], found[1]


def _written(step: str) -> dict[str, Any]:
    """Undo `_step`."""
    if step in (_GPT2, _BYTES):
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": step == _GPT2,
        }
    if step in (_DIGITS, _NUMBERS):
        return {"type": "Digits", "individual_digits": step == _DIGITS}
    if step == _PUNCTUATION:
        return {"type": "Punctuation", "behavior": "Contiguous"}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
