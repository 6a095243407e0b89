"""What llama.cpp makes of texts, ends and conversations, compared with what a model is trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import OutputError, VerifyError
from edgetune.core.template import Templates
from edgetune.export.composing import composed
from edgetune.export.gguf_file import gguf_writer, write_header, write_small
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.plan import ExportPlan
from edgetune.export.speech import Speech
from edgetune.export.tensors import PlannedTensor

Messages = list[dict[str, str]]

CONVERSATIONS: tuple[Messages, ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one, please!"},
    ],
)
"""What a chat template is tried on; one that the template itself refuses is left out."""

WIDTH, HEADS, INNER = 32, 1, 32
"""Sizes of the model that carries a vocabulary to llama.cpp: the smallest it loads."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the ids a model is trained on, without what the tokenizer puts in front by itself."""

    text: str
    ids: tuple[int, ...]


@contextmanager
def vocabulary_in_llama_cpp(plan: ExportPlan) -> Iterator[LlamaCpp]:
    """Load a planned vocabulary, with a model of a few zeros, in llama.cpp.

    Raises:
        ModelError: if llama.cpp refuses the vocabulary.
        OutputError: if there is no room for a temporary file.
        MissingExtraError: if `gguf` or `xllamacpp` is not installed.
    Cost: a file of 50 bytes a token, and some tenths of a second for a vocabulary of 150,000.
    """
    with tempfile.TemporaryDirectory(prefix="edgetune-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        try:
            _write_carrier(path, plan)
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=path) from error
        llama = LlamaCpp(path, context=512)
    # Loaded, the file is needed no more; a kill from here on leaves nothing behind.
    with llama:
        yield llama


def _write_carrier(path: Path, plan: ExportPlan) -> None:
    rows = len(plan.vocabulary.tokens)
    matrices = {
        "token_embd": (rows, WIDTH),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH, WIDTH),
        "blk.0.attn_v": (WIDTH, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    carrier = replace(
        plan,
        architecture="llama",
        parameters={
            "context_length": 512,
            "embedding_length": WIDTH,
            "block_count": 1,
            "feed_forward_length": INNER,
            "attention.head_count": HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": WIDTH,
            "vocab_size": rows,
        },
        tensors=(PlannedTensor("token_embd.weight", None, "F16", (rows, WIDTH)),),
    )
    norms = dict.fromkeys(("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"), np.zeros(WIDTH, np.float32))
    empty = {name: np.zeros(shape, np.float16) for name, shape in matrices.items()} | norms
    with gguf_writer(path, "llama") as writer:
        write_header(writer, carrier, {})
        write_small(writer, {f"{name}.weight": values for name, values in empty.items()})


def compare_texts(
    llama: LlamaCpp, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], *, composes: bool
) -> int:
    """Check that llama.cpp makes of every text the ids that the model is trained on.

    Args:
        llama: the file, or a vocabulary alone.
        tokenizer: for showing where they differ.
        texts: what is trained on.
        composes: compose the characters of the texts first, as the tokenizer does and llama.cpp does not.

    Returns:
        How many texts were not composed.

    Raises:
        VerifyError: at the first text on which they differ, with the place.
    Cost: about half a second a million characters.
    """
    given = [composed(one.text) if composes else one.text for one in texts]
    for one, ids in zip(texts, llama.tokenise_all(given, special=False), strict=True):
        same_ids(one.ids, ids, one.text, llama, tokenizer)
    return sum(text != one.text for text, one in zip(given, texts, strict=True))


def compare_front(
    llama: LlamaCpp, tokenizer: PreTrainedTokenizerBase, speech: Speech, *, composes: bool
) -> None:
    """Check that llama.cpp puts in front of a text what training does: a start token once, or none.

    Raises:
        VerifyError: if it does not.
    """
    text = composed(speech.text) if composes else speech.text
    begins = bool(llama.metadata["tokenizer.ggml.add_bos_token"]) and text.startswith(
        str(tokenizer.bos_token)
    )
    # llama.cpp takes a start token out of a rendered prompt when it adds one itself.
    text = text.removeprefix(str(tokenizer.bos_token)) if begins else text
    same_ids(speech.ids, llama.tokenise(text), speech.text, llama, tokenizer)


def compare_ends(llama: LlamaCpp, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
    """Check that an answer ends in llama.cpp at every token that ends one here.

    Raises:
        VerifyError: naming the token at which it goes on.
    """
    for end in ends:
        if not llama.ends_at(end):
            raise VerifyError(
                f"an answer does not end in llama.cpp at {tokenizer.convert_ids_to_tokens(end)!r}",
                where=llama.path,
                hint="give the token another name in tokenizer.json",
            )


def compare_templates(
    llama: LlamaCpp,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    conversations: Sequence[Messages] = CONVERSATIONS,
) -> None:
    """Check that the file holds the chat template and that llama.cpp renders it to the same ids.

    Args:
        llama: the file, or a vocabulary alone.
        tokenizer: gives the special tokens and the ids.
        template: what the file must hold.
        conversations: what it is tried on, beside what it is trained on.

    Raises:
        VerifyError: if the template is missing or another one, or a rendered conversation differs.
        ModelError: if llama.cpp cannot render what transformers can.
    """
    stored = llama.metadata.get("tokenizer.chat_template")
    if stored != template:
        what = "the chat template is missing" if stored is None else "the file has another chat template"
        raise VerifyError(what, where=llama.path, hint="export again with this tokenizer")
    if template is None:
        return
    variables: Mapping[str, Any] = tokenizer.special_tokens_map
    with Templates(template, variables, day=date.today()) as templates:
        rendered = templates.render([(messages, True) for messages in conversations])
    start = [tokenizer.bos_token_id] if llama.metadata.get("tokenizer.ggml.add_bos_token") else []
    for messages, text in zip(conversations, rendered, strict=True):
        if isinstance(text, str):
            ids = list(tokenizer(text, add_special_tokens=False).input_ids)
            ids = ids if ids[:1] == start else start + ids
            same_ids(ids, llama.tokenise(llama.render(messages)), text, llama, tokenizer)


def compare_prompts(
    llama: LlamaCpp,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[Messages, Text]],
    *,
    composes: bool,
) -> None:
    """Check that llama.cpp asks a question with the very ids that the model is trained to answer.

    Args:
        llama: the file, or a vocabulary alone.
        tokenizer: for showing where they differ.
        asked: conversations, and the prompt that training makes of each, with all its ids.
        composes: as in `compare_texts`.

    Raises:
        VerifyError: at the first one that differs.
    """
    for messages, prompt in asked:
        given = [{**one, "content": composed(one["content"])} for one in messages] if composes else messages
        same_ids(prompt.ids, llama.tokenise(llama.render(given)), prompt.text, llama, tokenizer)


def same_ids(
    ours: Sequence[int],
    theirs: Sequence[int],
    text: str,
    llama: LlamaCpp,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check that two lists of ids are equal.

    Raises:
        VerifyError: showing the first difference.
    """
    if list(ours) == list(theirs):
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    before = tokenizer.decode(list(ours[:place]))
    raise VerifyError(
        f"llama.cpp makes other tokens of a text, from token {place} on, after {before[-40:]!r}: "
        f"{tokenizer.convert_ids_to_tokens(list(ours[place : place + 3]))} here, "
        f"{tokenizer.convert_ids_to_tokens(list(theirs[place : place + 3]))} there; text {text[:80]!r}",
        where=llama.path,
    )
