"""The tokenizer of a model folder: the one that `tokenizer.json` describes, with tokens the model has rows for."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from edgetune.core.errors import EdgetuneError, ModelError
from edgetune.models.trial import PROBES, try_tokenizer

FILE = "tokenizer.json"
_FILES = (FILE, "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_CONFIGURED = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_AT_ONCE = 50
"""Added tokens in one probing text."""


def load_tokenizer(folder: Path, rows: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose ids are those of the folder's own file and reach no further than the model's rows.

    transformers makes the tokenizer that `tokenizer_config.json` names by class, with that class's normalizer,
    pre-tokenizer and further special tokens, whatever `tokenizer.json` says. The file is what the model was trained
    with: where the two differ, in structure, in tokens or in the ids of `PROBES`, the tokenizer is made of the file,
    with the special tokens and the chat template that the configuration names. A folder without `tokenizer.json` is
    left to transformers. Added tokens that the model has no row for are taken out, with the role they have (`[PAD]` is
    often added so).

    Args:
        folder: a Hugging Face model folder.
        rows: number of embeddings.

    Raises:
        ModelError: no tokenizer; a file that cannot be read; ids that still differ from the file's; a token of the
            vocabulary, a needed role or the chat template without a row.
    Cost: reads tokenizer.json three times, once in another process.
    """
    if not any((folder / name).is_file() for name in _FILES):
        # Without a vocabulary file, transformers 5 would make an empty tokenizer instead of raising.
        hint = "copy tokenizer.json of the same model"
        raise ModelError("no tokenizer in this folder", where=folder, hint=hint)
    file = folder / FILE
    if file.is_file():
        try_tokenizer(file)
    with _typed(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    if file.is_file():
        with _typed(file):
            tokenizer = _of_file(tokenizer, file)
    with _typed(folder):
        return _fitted(tokenizer, rows, folder)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, of bounded length, or the error's type."""
    lines = str(error)[:5000].splitlines()
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)[:300]


@contextmanager
def _typed(where: Path) -> Iterator[None]:
    """Make a ModelError of whatever the libraries raise: many unrelated types, and panics, which are no Exceptions."""
    try:
        yield
    except EdgetuneError:
        raise
    except BaseException as error:
        panic = (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
        if not isinstance(error, Exception) and not panic:
            raise
        raise ModelError(f"cannot use this tokenizer: {first_line(error)}", where=where) from error


def _of_file(tokenizer: PreTrainedTokenizerBase, file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer if it is that of the file, else one that is."""
    truth = Tokenizer.from_file(str(file))
    truth.no_truncation()
    truth.no_padding()
    named = _strings(file.parent)
    if _difference(tokenizer, truth, named) is None:
        return tokenizer
    made = _made_of(truth, tokenizer, named)
    left = _difference(made, truth, named)
    if left is not None:
        hint = "remove what tokenizer_config.json says about it"
        raise ModelError(f"transformers makes another tokenizer of this file: {left}", where=file, hint=hint)
    return made


def _strings(folder: Path) -> frozenset[str]:
    """Return every text in the configuration of a tokenizer: among them the tokens that it names."""
    found, left = set[str](), list[Any]()
    for name in _CONFIGURED:
        if (folder / name).is_file():
            left.append(json.loads((folder / name).read_text(encoding="utf-8")))
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return frozenset(found)


def _difference(tokenizer: PreTrainedTokenizerBase, truth: Tokenizer, named: frozenset[str]) -> str | None:
    """Say in what a tokenizer differs from its file, or None: parts, added tokens, ids of texts.

    A token that the configuration names and the file lacks is no difference.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "it is a slow tokenizer"
    for part in _PARTS:
        if _state(getattr(backend, part)) != _state(getattr(truth, part)):
            return f"its {part.replace('_', ' ')}"
    ours, theirs = backend.get_added_tokens_decoder(), truth.get_added_tokens_decoder()
    for index in sorted({*ours, *theirs}):
        one, other = ours.get(index), theirs.get(index)
        if _state(one) != _state(other) and not (other is None and str(one) in named):
            return f"its token {str(other or one)[:40]!r}"
    further = [token for index, token in sorted(ours.items()) if index not in theirs]
    expected = copy.deepcopy(truth) if further else truth
    expected.add_tokens(further)
    tokens = [str(token) for token in theirs.values()]
    some = [tokens[at : at + _AT_ONCE] for at in range(0, len(tokens), _AT_ONCE)]
    around = ["".join(f"a {token} b{token}" for token in chunk) for chunk in some]
    for text in (*PROBES, *around):
        if tokenizer(text, verbose=False)["input_ids"] != expected.encode(text).ids:
            return f"the ids of {text[:40]!r}"
    return None


def _state(part: Any) -> Any:
    """Return what a part of a tokenizer is; None for one that does nothing."""
    if part is None:
        return None
    state = part.__getstate__()
    if isinstance(state, bytes) and state.startswith(b'{"type":"TemplateProcessing"'):
        return state if json.loads(state)["special_tokens"] else None
    return state


def _made_of(
    truth: Tokenizer, configured: PreTrainedTokenizerBase, named: frozenset[str]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the file's own parts with the tokens that the configuration names for it.

    What a class names by default counts only where the file has it.
    """
    by_text = {str(token): token for token in truth.get_added_tokens_decoder().values()}

    def known(token: object) -> Any:
        text = str(token)
        if text not in named and truth.token_to_id(text) is None:
            return None
        return by_text.get(text, AddedToken(text, special=True, normalized=False))

    roles = {
        role: known(getattr(configured, role)) for role in _ROLES if getattr(configured, role) is not None
    }
    others = [known(token) for token in getattr(configured, "extra_special_tokens", None) or ()]
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerBase = make(
        tokenizer_object=copy.deepcopy(truth),
        **{role: token for role, token in roles.items() if token is not None},
        additional_special_tokens=[token for token in others if token is not None],
        chat_template=configured.chat_template,
        model_max_length=configured.model_max_length,
        clean_up_tokenization_spaces=configured.clean_up_tokenization_spaces,
        padding_side=configured.padding_side,
        truncation_side=configured.truncation_side,
        model_input_names=configured.model_input_names,
        name_or_path=configured.name_or_path,
    )
    return made


def _fitted(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> PreTrainedTokenizerBase:
    """Take out added tokens without a row, where nothing needs them."""
    vocabulary = tokenizer.get_vocab()
    beyond = {token: index for token, index in vocabulary.items() if index >= rows}
    if not beyond:
        return tokenizer
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    templates: Any = tokenizer.chat_template or ""
    template = " ".join(map(str, templates.values())) if isinstance(templates, Mapping) else str(templates)
    ends = (tokenizer.bos_token, tokenizer.eos_token)
    needed = [token for token in beyond if token not in added or token in template or token in ends]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if needed or backend is None:
        some = sorted(needed or beyond, key=lambda token: beyond[token])[:3]
        shown = ", ".join(repr(token[:40]) for token in some)
        raise ModelError(
            f"the tokenizer has tokens the model's {rows} rows do not reach: {shown}",
            where=folder,
            hint="use the tokenizer of this very model, or give its embeddings rows for them",
        )
    description = json.loads(backend.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < rows]
    fitted = _made_of(Tokenizer.from_str(json.dumps(description)), tokenizer, frozenset())
    if fitted.get_vocab() != {token: index for token, index in vocabulary.items() if index < rows}:
        raise ModelError(
            f"the tokens without a row cannot be taken out: {', '.join(sorted(beyond)[:3])}", where=folder
        )
    return fitted
