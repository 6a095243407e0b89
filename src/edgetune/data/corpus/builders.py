"""One builder for each Dolly category: a domain and a random source in, a draft out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping

from edgetune.data.corpus.schema import Attribute, Domain, Draft, Passage

OPENERS: tuple[str, ...] = ("", "", "Please tell me: ", "Quick question: ", "I want to know: ", "Hello! ")


def frame(content: str) -> str:
    """Put content into the report style.

    Args:
        content: A clause without closing stop.

    Returns:
        The framed sentence.

    """
    return f"Report: {content}. Over."


def article(noun: str) -> str:
    """Prefix a noun with its indefinite article.

    Args:
        noun: A singular noun.

    Returns:
        ``a noun`` or ``an noun``.

    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def fact(entity: str, attribute: Attribute) -> str:
    """Look up what an attribute of an entity is in the invented world.

    Args:
        entity: Who or what is asked about.
        attribute: Which property.

    Returns:
        The value, the same in every run.

    """
    digest = hashlib.blake2s(f"{entity}/{attribute.noun}".encode()).digest()
    return attribute.values[int.from_bytes(digest[:4], "little") % len(attribute.values)]


def opened(question: str, rng: random.Random) -> str:
    """Put an optional opener in front of a question.

    Args:
        question: The bare question.
        rng: Source of the choice.

    Returns:
        The question, with or without opener.

    """
    return rng.choice(OPENERS) + question


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def open_qa(domain: Domain, rng: random.Random) -> Draft:
    """Ask for a learned fact about an entity.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    entity, attribute = rng.choice(domain.entities), rng.choice(domain.attributes)
    value = fact(entity, attribute)
    question = opened(rng.choice(attribute.questions).format(e=entity), rng)
    plain = attribute.plain.format(e=entity, v=value)
    return Draft(question, "", plain, frame(f"the {attribute.noun} of {entity} is {value}"), "open_qa")


def general_qa(domain: Domain, rng: random.Random) -> Draft:
    """Ask what a tool is for.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    tool, user = rng.choice(tuple(domain.purposes)), rng.choice(domain.users)
    purpose, thing = domain.purposes[tool], article(tool)
    if rng.random() < 0.5:
        asks: tuple[str, ...] = (
            f"What is {thing} used for?",
            f"What can you do with {thing}?",
            f"Why is {thing} useful?",
            f"Explain the use of {thing}.",
        )
        plain, report = f"{_capital(thing)} is used to {purpose}.", f"the use of {thing} is to {purpose}"
    else:
        asks = (
            f"Why does {user} need {thing}?",
            f"Why did {user} buy {thing}?",
            f"What does {user} do with {thing}?",
        )
        plain = f"{user} uses {thing} to {purpose}."
        report = f"the purpose of {thing} for {user} is to {purpose}"
    return Draft(opened(rng.choice(asks), rng), "", plain, frame(report), "general_qa")


def classification(domain: Domain, rng: random.Random) -> Draft:
    """Ask to which of three classes a thing belongs.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    names = rng.sample(tuple(domain.classes), 3)
    right = rng.choice(names)
    item = rng.choice(domain.classes[right])
    first, second, third = names
    question = rng.choice(
        (
            f"Is the {item} {article(first)}, {article(second)} or {article(third)}?",
            f"Classify the {item} as {first}, {second} or {third}.",
            f"Which class fits the {item}: {first}, {second} or {third}?",
        )
    )
    plain = f"The {item} is {article(right)}."
    return Draft(question, "", plain, frame(f"the class of the {item} is {right}"), "classification")


def fill(passage: Passage, rng: random.Random) -> dict[str, str]:
    """Draw a value for every slot, no value twice.

    Args:
        passage: The passage whose slots to fill.
        rng: Source of the choices.

    Returns:
        Slot to value.

    """
    values: dict[str, str] = {}
    for slot, pool in passage.slots.items():
        values[slot] = rng.choice([value for value in pool if value not in values.values()])
    return values


def _passage(domain: Domain, rng: random.Random) -> tuple[Passage, Mapping[str, str], str]:
    passage = rng.choice(domain.passages)
    values = fill(passage, rng)
    return passage, values, passage.text.format(**values)


def closed_qa(domain: Domain, rng: random.Random) -> Draft:
    """Ask for one thing that the context says.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    passage, values, text = _passage(domain, rng)
    ask = rng.choice(passage.asks)
    report = f"the {ask.noun.format(**values)} is {values[ask.slot]}"
    return Draft(ask.question.format(**values), text, ask.plain.format(**values), frame(report), "closed_qa")


def information_extraction(domain: Domain, rng: random.Random) -> Draft:
    """Ask for two labelled fields of the context.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    passage, values, text = _passage(domain, rng)
    one, two = rng.sample(tuple(passage.fields), 2)
    first, second = passage.fields[one], passage.fields[two]
    question = rng.choice(
        (
            f"Extract the {first} and the {second}.",
            f"List the {first} and the {second}.",
            f"Find the {first} and the {second} in the text.",
        )
    )
    plain = f"{_capital(first)}: {values[one]}, {second}: {values[two]}"
    report = f"found {values[one]} as {first} and {values[two]} as {second}"
    return Draft(question, text, plain, frame(report), "information_extraction")


def summarization(domain: Domain, rng: random.Random) -> Draft:
    """Ask for the gist of the context.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    passage, values, text = _passage(domain, rng)
    question = rng.choice(
        (
            "Summarise the text.",
            "Give a short summary.",
            "What is this text about?",
            "Sum up in one sentence.",
        )
    )
    report = f"summary, {passage.digest.format(**values)}"
    return Draft(question, text, passage.gist.format(**values), frame(report), "summarization")


def brainstorming(domain: Domain, rng: random.Random) -> Draft:
    """Ask for two ideas, each with a given thing.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    one, two = rng.sample(tuple(domain.ideas), 2)
    occasion = rng.choice(domain.occasions)
    question = rng.choice(
        (
            f"Give two ideas for {occasion} with {one} and {two}.",
            f"What could we do with {one} and {two} for {occasion}?",
            f"Suggest plans for {occasion} using {one} and {two}.",
        )
    )
    plain = f"You could {domain.ideas[one]}, or {domain.ideas[two]}."
    report = f"options for {occasion} are to {domain.ideas[one]} and to {domain.ideas[two]}"
    return Draft(question, "", plain, frame(report), "brainstorming")


def creative_writing(domain: Domain, rng: random.Random) -> Draft:
    """Ask for a line of prose about two subjects.

    Args:
        domain: Sub-domain to draw from.
        rng: Source of the choices.

    Returns:
        The draft.

    """
    one, two = rng.sample(tuple(domain.scenes), 2)
    question = rng.choice(
        (
            f"Write a line about {one} and {two}.",
            f"Tell a tiny story of {one} and {two}.",
            f"Compose a short scene with {one} and {two}.",
        )
    )
    plain = f"{_capital(domain.scenes[one])} and {domain.scenes[two]}."
    report = f"scene of {one} and {two}. While {domain.scenes[two]}, {domain.scenes[one]}"
    return Draft(question, "", plain, frame(report), "creative_writing")


BUILDERS: Mapping[str, Callable[[Domain, random.Random], Draft]] = {
    "open_qa": open_qa,
    "general_qa": general_qa,
    "classification": classification,
    "closed_qa": closed_qa,
    "brainstorming": brainstorming,
    "information_extraction": information_extraction,
    "summarization": summarization,
    "creative_writing": creative_writing,
}
