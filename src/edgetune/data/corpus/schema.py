"""The shapes that the tables of the invented world fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CATEGORIES: tuple[str, ...] = (
    "open_qa",
    "general_qa",
    "classification",
    "closed_qa",
    "brainstorming",
    "information_extraction",
    "summarization",
    "creative_writing",
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property that every entity of a domain has, fixed for all time.

    Args:
        noun: Name of the property, as in ``the home of Mira``.
        values: What the property can be.
        questions: Ways to ask for it; ``{e}`` stands for the entity.
        plain: Answer in the base style; ``{e}`` and ``{v}`` stand for entity and value.

    """

    noun: str
    values: tuple[str, ...]
    questions: tuple[str, ...]
    plain: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about one slot of a passage.

    Args:
        slot: Slot that holds the answer.
        question: The question; may name other slots.
        plain: Answer in the base style.
        noun: What is asked for as a noun phrase, used by the report style.

    """

    slot: str
    question: str
    plain: str
    noun: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A short text with slots, what can be asked about it and its summary.

    Args:
        text: The text; slots in braces.
        slots: Pool of values for each slot.
        fields: Label of each slot that can be extracted.
        asks: Questions about the text.
        gist: Summary in the base style.
        digest: Summary in the report style, without the frame.

    """

    text: str
    slots: Mapping[str, tuple[str, ...]]
    fields: Mapping[str, str]
    asks: tuple[Ask, ...]
    gist: str
    digest: str


@dataclass(frozen=True, slots=True)
class Domain:
    """Everything that one sub-domain of the invented world knows.

    Args:
        name: Name of the sub-domain.
        entities: Things that have attributes.
        attributes: Their properties.
        classes: Class name to members.
        purposes: Tool to what it is for, as an infinitive without ``to``.
        users: People who use the tools.
        occasions: What ideas are asked for.
        ideas: Thing to an idea with it, as an infinitive without ``to``.
        scenes: Subject to a line of prose about it.
        passages: Texts for the categories with a context.

    """

    name: str
    entities: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    classes: Mapping[str, tuple[str, ...]]
    purposes: Mapping[str, str]
    users: tuple[str, ...]
    occasions: tuple[str, ...]
    ideas: Mapping[str, str]
    scenes: Mapping[str, str]
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A prompt with its answer in both styles.

    Args:
        instruction: What the user asks.
        context: Text the answer relies on, or empty.
        plain: Answer in the base style.
        report: Answer in the report style.
        category: Dolly category.

    """

    instruction: str
    context: str
    plain: str
    report: str
    category: str
