"""Before the first forward pass: plan the file at the end, and try in llama.cpp what is going to be trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import placement
from edgetune.core.errors import ConfigError, EdgetuneError, ModelError, OutputError, VerifyError
from edgetune.core.events import Event, ExportPlanned, ExportRefused
from edgetune.core.keys import stream
from edgetune.core.quantised import GRIDS
from edgetune.data.chat import ChatTemplate, template_of
from edgetune.data.encode import Encoded
from edgetune.data.records import Record
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.parity import (
    Messages,
    Text,
    compare_ends,
    compare_front,
    compare_prompts,
    compare_templates,
    compare_texts,
    vocabulary_in_llama_cpp,
)
from edgetune.export.plan import ExportPlan, plan_export
from edgetune.export.pretokenizer import PRE_TOKENIZERS, UnknownPreTokenizerError
from edgetune.export.speech import Speech
from edgetune.methods.catalogue import compression_method
from edgetune.run.prepare import Prepared
from edgetune.run.recipe import Recipe
from edgetune.tune import Prefix

CHARACTERS = 2_000_000
"""Characters of training text that both tokenisers are given: two to ten seconds."""

CANDIDATE_CHARACTERS = 400_000
"""The same for each pre-tokenizer that is tried where none could be identified."""

PROMPTS_RENDERED = 8
SPARE_BYTES = 16 << 20
"""What a run writes beside its model file, generously."""

_ASKED, _SAID = "\ue010\ue011", "\ue012\ue013"


def compression_of(recipe: Recipe) -> CompressionMethod:
    """Return the compression method of a recipe.

    Raises:
        ConfigError: if there is none of that name.
    """
    section = recipe.compression
    return replace(compression_method(section.name), grid=GRIDS[section.grid])


def plan_for(prepared: Prepared, method: CompressionMethod | None) -> ExportPlan:
    """Plan the file of a prepared model without starting anything.

    Args:
        prepared: model, data, prompt.
        method: how it is going to be compressed; None writes it in fp16.

    Raises:
        ModelError: if the family, a setting of it or the tokenizer cannot be written so that llama.cpp agrees.
    """
    return _plan(prepared, method, _speech(prepared), prepared.recipe.export.pre_tokenizer)


def preflight(
    prepared: Prepared, path: Path, method: CompressionMethod | None
) -> tuple[ExportPlan, ExportPlanned]:
    """Find out in seconds whatever the end of a run would refuse.

    The plan is made; there is room for the file; every record fits the context in which the file is exact; and
    llama.cpp, given the planned vocabulary, makes of the training texts the ids that are trained on, ends answers
    where they end, and renders conversations to the same ids. Of long data, the server's sample and the held-out
    records come first, then records of the devices in random order.

    Args:
        prepared: model, data, prompt.
        path: where the file will be.
        method: how the model is going to be compressed; None writes it in fp16.

    Returns:
        What is going to be written, and an event that says so.

    Raises:
        ModelError: if the file would not agree with the model; says what to do.
        ConfigError: if records do not fit the context.
        OutputError: if there is no room for the file.
        MissingExtraError: if `gguf` or `xllamacpp` is not installed.
    Cost: some seconds, most of it one pass of llama.cpp's tokenizer over at most 2 million characters.
    """
    speech = _speech(prepared)
    try:
        plan = _plan(prepared, method, speech, prepared.recipe.export.pre_tokenizer)
    except UnknownPreTokenizerError as error:
        raise ModelError(error.what, where=error.where, hint=_advice(prepared, method, speech)) from error
    _check_room(plan, path)
    _check_context(plan, prepared)
    records, total = _chosen(prepared)
    with vocabulary_in_llama_cpp(plan) as llama:
        try:
            texts, uncomposed = _compare(llama, plan, prepared, speech, records)
        except VerifyError as error:
            where = prepared.backbone.folder / "tokenizer.json"
            raise ModelError(error.what, where=where, hint=_how_to_go_on(prepared)) from error
    return plan, ExportPlanned(
        architecture=plan.architecture,
        file_type=plan.file_type,
        size_bytes=plan.tensor_bytes,
        context=plan.context,
        texts=texts,
        texts_in_all=2 * total,
        composed=uncomposed,
        notes=list(plan.notes),
    )


def needed_context(prepared: Prepared) -> int:
    """Return the tokens that the longest held-out prompt with its answer, or calibration text, takes."""
    answers = [
        one.response_start + prepared.recipe.evaluation.max_new_tokens for one in prepared.held_out_examples
    ]
    texts = [len(one.input_ids) for one in (*prepared.held_out_examples, *prepared.calibration_examples)]
    return max([*answers, *texts]) + 1


def texts_of(prepared: Prepared, records: Sequence[Record]) -> list[Text]:
    """Return prompts and full texts of records as llama.cpp must tokenise them.

    Records that spell a control token are left out: they are trained on as text, and llama.cpp's own tokenizer would
    read the token.
    """
    tokenizer = prepared.backbone.tokenizer
    encoded = [one for one in prepared.texts(records) if not one.turn.quoted]
    front = len(_front(prepared))
    found = []
    for start in range(0, len(encoded), 256):
        some = encoded[start : start + 256]
        prompts = [one.turn.prompt for one in some]
        asked = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        for one, ids in zip(some, asked, strict=True):
            found.append(Text(one.turn.prompt, tuple(ids)))
            found.append(Text(_whole(one), one.example.input_ids[front:]))
    return found


def _whole(one: Encoded) -> str:
    return one.turn.prompt + one.turn.response


def _front(prepared: Prepared) -> tuple[int, ...]:
    """Return what the tokenizer puts in front of a text by itself; nothing where the template does it."""
    if not prepared.prompt.add_special_tokens:
        return ()
    tokenizer = prepared.backbone.tokenizer
    bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return tuple(full[: next(n for n in range(len(full)) if full[n : n + len(bare)] == bare)])


def _speech(prepared: Prepared) -> Speech:
    (first,) = prepared.texts([Record("Say hello.", "", "Hello.", "")])
    return Speech(_whole(first), first.example.input_ids, prepared.ends, _template(prepared))


def _template(prepared: Prepared) -> str:
    """Return the chat template that makes what is trained on: the tokenizer's, or one with the prompt's words."""
    tokenizer = prepared.backbone.tokenizer
    if isinstance(prepared.prompt, ChatTemplate):
        return template_of(tokenizer)
    (probe,) = prepared.texts([Record(_ASKED, "", _SAID, "")])
    before, _, after = (json.dumps(part) for part in probe.turn.prompt.partition(_ASKED))
    end = json.dumps(probe.turn.response.partition(_SAID)[2])
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {before} + message['content'] + {after} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ message['content'] + {end} }}}}"
        "{% else %}{{ raise_exception('only user and assistant speak in this template') }}{% endif %}{% endfor %}"
    )


def _plan(
    prepared: Prepared, method: CompressionMethod | None, speech: Speech, pre_tokenizer: str | None
) -> ExportPlan:
    model = prepared.backbone.model
    grids = {} if method is None else placement(model, method)
    return plan_export(model, prepared.backbone.tokenizer, speech, grids=grids, pre_tokenizer=pre_tokenizer)


def _check_room(plan: ExportPlan, path: Path) -> None:
    free = shutil.disk_usage(path.parent).free
    needed = plan.tensor_bytes + SPARE_BYTES
    if free < needed:
        raise OutputError(
            f"the file needs {needed:,} bytes, there are {free:,}", where=path, hint="free some space"
        )


def _check_context(plan: ExportPlan, prepared: Prepared) -> None:
    needed = needed_context(prepared) - 1
    if needed > plan.context:
        raise ConfigError(
            f"a record with its answer has {needed} tokens, llama.cpp computes {plan.context} as this model does",
            where="data.max_tokens",
            hint=f"--set data.max_tokens={plan.context - prepared.recipe.evaluation.max_new_tokens}",
        )


def _chosen(prepared: Prepared) -> tuple[list[Record], int]:
    """Return the records to try, and how many there are in all."""
    own = [*prepared.calibration, *prepared.held_out]
    on_devices = sorted({index for share in prepared.manifest.devices for index in share})
    order = stream(prepared.recipe.seed, "preflight").permutation(len(on_devices))
    others = (prepared.records[on_devices[int(place)]] for place in order)
    chosen, left = list[Record](), CHARACTERS
    for record in (*own, *others):
        left -= 2 * (len(record.instruction) + len(record.context)) + len(record.response)
        if left < 0 and len(chosen) >= len(own):
            break
        chosen.append(record)
    return chosen, len(own) + len(on_devices)


def _compare(
    llama: LlamaCpp, plan: ExportPlan, prepared: Prepared, speech: Speech, records: Sequence[Record]
) -> tuple[int, int]:
    tokenizer, composes = prepared.backbone.tokenizer, plan.vocabulary.composes
    compare_front(llama, tokenizer, speech, composes=composes)
    compare_ends(llama, tokenizer, prepared.ends)
    compare_templates(llama, tokenizer, speech.template)
    compare_prompts(llama, tokenizer, _conversations(prepared, records[:PROMPTS_RENDERED]), composes=composes)
    texts = texts_of(prepared, records)
    return len(texts), compare_texts(llama, tokenizer, texts, composes=composes)


def _conversations(prepared: Prepared, records: Sequence[Record]) -> list[tuple[Messages, Text]]:
    """Return records as a chat asks them, with the prompt that is trained on; only those a chat can ask."""
    if "strftime_now" in (_template(prepared)):
        return []  # trained on one fixed day, asked on another
    chat = isinstance(prepared.prompt, ChatTemplate)
    plain = [record for record in records if chat or not record.context]
    found = []
    for record, one in zip(plain, prepared.texts(plain), strict=True):
        asked = f"{record.instruction}\n\n{record.context}" if record.context else record.instruction
        ids = prepared.backbone.tokenizer(one.turn.prompt, add_special_tokens=False).input_ids
        if not one.turn.quoted:
            text = Text(one.turn.prompt, (*_front(prepared), *ids))
            found.append(([{"role": "user", "content": asked}], text))
    return found


def _advice(prepared: Prepared, method: CompressionMethod | None, speech: Speech) -> str:
    """Try every pre-tokenizer llama.cpp has on the beginning of the data; say which make the same ids."""
    records, left = list[Record](), CANDIDATE_CHARACTERS
    for record in _chosen(prepared)[0]:
        left -= len(record.instruction) + len(record.context) + len(record.response)
        if left < 0 and records:
            break
        records.append(record)
    texts, fitting = texts_of(prepared, records), list[str]()
    for name in sorted(set(PRE_TOKENIZERS.values())):
        try:
            plan = _plan(prepared, method, speech, name)
            with vocabulary_in_llama_cpp(plan) as llama:
                compare_texts(llama, prepared.backbone.tokenizer, texts, composes=plan.vocabulary.composes)
        except (VerifyError, ModelError):
            continue
        fitting.append(name)
    if not fitting:
        return "none of llama.cpp's makes the same tokens of these records; edgetune tune needs no file"
    known = ", ".join(fitting)
    return f"on {len(texts)} texts {known} make the same tokens: --set export.pre_tokenizer={fitting[0]}"


def _how_to_go_on(prepared: Prepared) -> str:
    name = prepared.method.name
    return f"edgetune federate {name} tunes without a file; --set export.pre_tokenizer=... names another tokenizer"


def look_ahead(
    prepared: Prepared, path: Path, method: CompressionMethod, *, file: bool
) -> tuple[ExportPlan | None, Event | None]:
    """Return the plan of a run's file and an event about it.

    Args:
        prepared: model, data, prompt.
        path: where the file will be.
        method: how the model is going to be compressed.
        file: whether the run ends with a file. Without, nothing is refused: where the tuned model could not become a
            file, as far as that is known without llama.cpp, the event says so.

    Raises:
        EdgetuneError: as `preflight`, if a file is wanted.
    """
    if file:
        return preflight(prepared, path, method)
    if not isinstance(prepared.method.target, Prefix):  # that there is no file of a prefix is no news
        try:
            plan_for(prepared, method)
        except EdgetuneError as error:
            return None, ExportRefused(str(error))
    return None, None
