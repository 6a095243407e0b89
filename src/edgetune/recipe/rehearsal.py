"""What llama.cpp makes of the very texts that are trained on, tried with the vocabulary of the file to be."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgetune.core.keys import stream
from edgetune.data.chat import ChatTemplate, template_of
from edgetune.data.encode import Encoded, front_of
from edgetune.data.records import Message, Record
from edgetune.data.turns import folded
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.parity import (
    Messages,
    Text,
    compare_ends,
    compare_front,
    compare_prompts,
    compare_templates,
    compare_texts,
)
from edgetune.export.plan import ExportPlan
from edgetune.export.speech import Speech
from edgetune.recipe.prepare import Prepared

CHARACTERS = 2_000_000
"""Characters of training text that both tokenisers are given: two to ten seconds."""

PROMPTS_RENDERED = 8
_ASKED, _SAID = "\ue010\ue011", "\ue012\ue013"


def texts_of(prepared: Prepared, records: Sequence[Record]) -> list[Text]:
    """Return prompts and full texts of records as llama.cpp must tokenise them.

    Records that spell a control token are left out: they are trained on as text, and llama.cpp's own tokenizer would
    read the token.
    """
    tokenizer = prepared.backbone.tokenizer
    encoded = [one for one in prepared.texts(records) if not one.turn.quoted]
    found = []
    for start in range(0, len(encoded), 256):
        some = encoded[start : start + 256]
        prompts = [one.turn.prompt for one in some]
        asked = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        for one, ids in zip(some, asked, strict=True):
            if not one.turn.plain:
                found.append(Text(one.turn.prompt, tuple(ids)))
            found.append(Text(_whole(one), one.example.input_ids[len(_front(prepared, one)) :]))
    return found


def _whole(one: Encoded) -> str:
    return one.turn.prompt + one.turn.response


def _front(prepared: Prepared, one: Encoded) -> tuple[int, ...]:
    """Return what the tokenizer puts in front of a text by itself; nothing where the template does it."""
    dressed = prepared.prompt.add_special_tokens or one.turn.plain
    return front_of(prepared.backbone.tokenizer) if dressed else ()


def speech_of(prepared: Prepared) -> Speech:
    """Return how the model is spoken to: a sample text with its ids, the ends of answers, the chat template."""
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


def chosen_records(prepared: Prepared) -> tuple[list[Record], int]:
    """Return the records to try, and how many there are in all."""
    own = [*prepared.calibration, *prepared.held_out]
    on_devices = sorted({index for share in prepared.manifest.devices for index in share})
    order = stream(prepared.recipe.seed, "preflight").permutation(len(on_devices))
    others = (prepared.records[on_devices[int(place)]] for place in order)
    chosen, left = list[Record](), CHARACTERS
    for record in (*own, *others):
        left -= 2 * record.characters - len(record.response)
        if left < 0 and len(chosen) >= len(own):
            break
        chosen.append(record)
    return chosen, len(own) + len(on_devices)


def rehearse(
    llama: LlamaCpp, plan: ExportPlan, prepared: Prepared, speech: Speech, records: Sequence[Record]
) -> tuple[int, int]:
    """Compare front, ends, templates and texts of records in llama.cpp with those of the tokenizer.

    Returns:
        How many texts were compared, and how many of them only agree once composed.

    Raises:
        VerifyError: at the first difference.
    """
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
    askable = [record for record in records if not record.plain and (chat or not record.context)]
    found = []
    as_one = prepared.texts([folded(record) for record in askable])
    for record, one, other in zip(askable, prepared.texts(askable), as_one, strict=True):
        shown = folded(record) if other.turn == one.turn else record  # what the template has no place for
        said = (*shown.history, Message("user", shown.asked))
        ids = prepared.backbone.tokenizer(one.turn.prompt, add_special_tokens=False).input_ids
        if not one.turn.quoted:
            text = Text(one.turn.prompt, (*_front(prepared, one), *ids))
            found.append(([{"role": turn.role, "content": turn.text} for turn in said], text))
    return found
