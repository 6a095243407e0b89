"""The instruction record every data source yields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

LONGEST = 1_000_000
"""Characters of a record: of a longer one less than a thousandth would be used, and tokenising it takes gigabytes."""
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """What one side of a conversation said.

    Args:
        role: who.
        text: what.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction with its answer.

    Args:
        instruction: what the user asks.
        context: text the answer may rely on; empty when there is none.
        response: the reference answer: what is trained on and scored.
        category: any name of a kind of record, such as Dolly's `closed_qa`; empty when there is none.
        history: what was said before the instruction: at most one system message, then users and assistants by turns,
            a user first and an assistant last.
        conversation: the same for all records of one conversation, and for copies of it; empty for a record of its
            own.
        plain: there is no instruction: the response is a text of its own, and nothing is put before it.
    """

    instruction: str
    context: str
    response: str
    category: str
    history: tuple[Message, ...] = ()
    conversation: str = ""
    plain: bool = False

    @property
    def asked(self) -> str:
        """What a chat asks: the instruction, and the context behind a blank line."""
        return f"{self.instruction}\n\n{self.context}" if self.context else self.instruction

    @property
    def characters(self) -> int:
        """Length of all its texts."""
        return len(self.asked) + len(self.response) + sum(len(message.text) for message in self.history)

    @property
    def texts(self) -> tuple[str, ...]:
        """All its texts in the order in which they are said."""
        return (*(one.text for one in self.history), self.instruction, self.context, self.response)

    def without_oldest(self) -> Record:
        """Return the record without the first exchange of its history, or itself if it has none."""
        system = self.history[:1] if self.history[:1] and self.history[0].role == "system" else ()
        kept = self.history[len(system) + 2 :]
        return replace(self, history=(*system, *kept)) if len(self.history) > len(system) else self


FIELDS = tuple(field.name for field in fields(Record))[:4]
"""What stands in columns of a table."""


def records_digest(records: Iterable[Record]) -> str:
    """SHA-256 over the records in order, as hexadecimal digits.

        digest = sha256( line_1 line_2 ... ),   line = JSON [instruction, context, response, category] + newline

    A record with a history, of a conversation, or of plain text has those behind the category.
    """
    digest = hashlib.sha256()
    for record in records:
        said: list[object] = [getattr(record, name) for name in FIELDS]
        if record.history or record.conversation or record.plain:
            said += [[[one.role, one.text] for one in record.history], record.conversation, record.plain]
        line = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()
