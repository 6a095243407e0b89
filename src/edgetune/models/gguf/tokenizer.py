"""The tokenizer of a GGUF file, written as the folder it was converted from, and read as every other one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import ModelError
from edgetune.core.pretokenizer import BEGINS, CANONICAL, steps_of
from edgetune.models.gguf.metadata import Metadata
from edgetune.models.tokenizer import load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types."""
SPACE = "▁"
LONGEST = 256
"""Characters of a piece; SentencePiece's own limit is 16, and every place in one may be where two pieces join."""
ROLES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "mask": "mask_token",
}
"""Role in the file to role in transformers."""
Json = dict[str, Any]


def gguf_tokenizer(said: Metadata, rows: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a file describes, with its chat template.

    Args:
        said: the metadata.
        rows: of the model's embeddings.

    Raises:
        ModelError: for a vocabulary of another kind than byte-level BPE or SentencePiece's BPE, a pre-tokenizer that is
            not known, or a damaged vocabulary.
    Cost: that of loading a tokenizer, twice.
    """
    path = said.file.path
    tokens = said.texts("tokenizer.ggml.tokens")
    description, settings = _description(said, tokens), _settings(said, tokens)
    with tempfile.TemporaryDirectory(prefix="edgetune-") as name:
        folder = Path(name)
        for file, content in (("tokenizer.json", description), ("tokenizer_config.json", settings)):
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
        try:
            tokenizer = load_tokenizer(folder, rows)
        except ModelError as error:
            raise ModelError(f"the vocabulary: {error.what}", where=path, hint=error.hint) from error
    tokenizer.name_or_path = str(path)
    return tokenizer


def _description(said: Metadata, tokens: Sequence[str]) -> Json:
    """Return the content of a `tokenizer.json`."""
    types = said.numbers("tokenizer.ggml.token_type")
    if not tokens or len(set(tokens)) < len(tokens):
        said.refuse("tokenizer.ggml.tokens", "two tokens are equal" if tokens else "it is missing")
    types = types or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        said.refuse("tokenizer.ggml.token_type", f"{len(types)} types of {len(tokens)} tokens")
    kind = said.text("tokenizer.ggml.model", "")
    if kind not in ("gpt2", "llama"):
        said.refuse(
            "tokenizer.ggml.model", f"a vocabulary {kind[:40]!r} is not supported: gpt2 and llama are"
        )
    ids = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}
    parts = _byte_level(said, ids) if kind == "gpt2" else _sentence_pieces(said, ids, tokens, types)
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[index] != USER_DEFINED,
        }
        for index, token in enumerate(tokens)
        if types[index] in (CONTROL, USER_DEFINED) or (types[index] == UNKNOWN and kind == "llama")
    ]
    around = {"post_processor": _around(said, tokens, kind)}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | around | parts


def _byte_level(said: Metadata, ids: dict[str, int]) -> Json:
    name = said.text("tokenizer.ggml.pre", "")
    if name in ("", "default"):
        said.refuse("tokenizer.ggml.pre", "the file does not say how text is split; convert the model again")
    try:
        steps, whole_words = steps_of(name)
    except ModelError as error:
        raise ModelError(error.what, where=said.file.path, hint=error.hint) from error
    merges = [merge.split(" ") for merge in said.texts("tokenizer.ggml.merges")]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            said.refuse("tokenizer.ggml.merges", f"{' '.join(pair)[:40]!r} is no merge of this vocabulary")
    bytes_again = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "decoder": bytes_again,
        "model": _model(ids, merges, ignore_merges=whole_words),
    }


def _sentence_pieces(
    said: Metadata, ids: dict[str, int], tokens: Sequence[str], types: Sequence[int]
) -> Json:
    scores = said.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        said.refuse("tokenizer.ggml.scores", f"{len(scores)} scores of {len(tokens)} tokens")
    longest = max(map(len, tokens))
    if longest > LONGEST:
        said.refuse("tokenizer.ggml.tokens", f"a piece of {longest} characters")
    prefix = said.flag("tokenizer.ggml.add_space_prefix", True)
    unknown = said.token("tokenizer.ggml.unknown_token_id", len(tokens))
    unknown = types.index(UNKNOWN) if unknown is None and UNKNOWN in types else unknown
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _model(
            ids,
            _merges(ids, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _merges(ids: dict[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Return the merges that scores mean: every pair of tokens whose join is one, the best join first.

    Source: SentencePiece joins the pair of neighbours whose join has the best score, the leftmost first.
    """
    found = [
        (-scores[index], index, [token[:place], token[place:]])
        for token, index in ids.items()
        for place in range(1, len(token))
        if token[:place] in ids and token[place:] in ids
    ]
    return [pair for *_, pair in sorted(found)]


def _model(ids: dict[str, int], merges: list[list[str]], **settings: object) -> Json:
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return plain | settings | {"vocab": ids, "merges": merges}


def _around(said: Metadata, tokens: Sequence[str], kind: str) -> Json | None:
    """Return what is put around a text by itself; None for nothing."""
    pre = said.text("tokenizer.ggml.pre", "")
    begins = kind == "llama" or CANONICAL.get(pre, pre) in BEGINS
    front, back = (
        [said.token(f"tokenizer.ggml.{role}_token_id", len(tokens))]
        if said.flag(f"tokenizer.ggml.add_{role}_token", default)
        else []
        for role, default in (("bos", begins), ("eos", False))
    )
    if not front and not back:
        return None
    if None in (*front, *back):
        said.refuse("tokenizer.ggml.add_bos_token", "a token is to be added that the file does not name")
    names = [
        [{"SpecialToken": {"id": tokens[index], "type_id": 0}} for index in side if index is not None]
        for side in (front, back)
    ]
    text = [{"Sequence": {"id": letter, "type_id": 0}} for letter in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [*names[0], text[0], *names[1]],
        "pair": [*names[0], text[0], *names[1], *names[0], text[1], *names[1]],
        "special_tokens": {
            tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}
            for index in (*front, *back)
            if index is not None
        },
    }


def _settings(said: Metadata, tokens: Sequence[str]) -> Json:
    """Return the content of a `tokenizer_config.json`."""
    named = {role: said.token(f"tokenizer.ggml.{key}_token_id", len(tokens)) for key, role in ROLES.items()}
    template = said.file.metadata.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": said.whole("context_length"),
        **({"chat_template": template} if isinstance(template, str) and template else {}),
        **{role: tokens[index] for role, index in named.items() if index is not None},
    }
