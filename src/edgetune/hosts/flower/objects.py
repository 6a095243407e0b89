"""A message of bytes as Flower's objects, and back: one record, so that few requests carry it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from edgetune.core.errors import DigestError

RECORD, FIELD = "edgetune", "message"


@dataclass(frozen=True, slots=True)
class Packed:
    """A message as it travels.

    Args:
        message: without its content.
        tree: ids of its objects.
        objects: their bytes, by id.
    """

    message: Message
    tree: ObjectTree
    objects: Mapping[str, bytes]

    @property
    def id(self) -> str:
        """The message's name: a digest of all of it."""
        name: str = self.message.metadata.message_id
        return name


def pack(body: bytes, metadata: Metadata) -> Packed:
    """Return a message of bytes as Flower carries it."""
    whole = make_message(metadata, content=RecordDict({RECORD: ConfigRecord({FIELD: body})}))
    with no_object_id_recompute():
        whole.metadata.__dict__["_message_id"] = whole.object_id
        objects = {id: one.deflate() for id, one in get_all_nested_objects(whole).items()}
        return Packed(remove_content_from_message(whole), get_object_tree(whole), objects)


def unpack(id: str, tree: ObjectTree, pull: Callable[[str], bytes | None]) -> bytes | None:
    """Return the bytes of a message; None while an object of it is still on its way.

    Args:
        id: of the message.
        tree: ids of its objects.
        pull: returns the bytes of an object; empty or None if they are not there.

    Raises:
        DigestError: if it is not one record of one value of bytes, or its digest is another.
    """
    contents = dict[str, bytes]()
    for one in iterate_object_tree(tree):
        found = pull(one.object_id)
        if not found:
            return None
        contents[one.object_id] = found
    try:
        whole: Any = inflate_object_from_contents(id, contents)
        body = whole.content[RECORD][FIELD]
    except Exception as error:  # whatever a stranger's bytes make of the library
        raise DigestError(f"a message of Flower's is damaged: {type(error).__name__}") from error
    if not isinstance(body, bytes):
        raise DigestError("a message of Flower's holds no bytes")
    return body
