"""Flower's SuperNode in this process: a device's end of the link, without a process and a model load a message."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node

from edgetune.core.errors import HostError
from edgetune.hosts.flower.client import Client, Turned
from edgetune.hosts.flower.objects import pack, unpack

INTERVAL, BEAT = 20.0, 14.0
"""Seconds between signs of life that the server is told to expect, and between those that it gets: it misses one."""


class SuperNode:
    """The device's end of the link (`hosts.link.Post`); entered, it is connected.

    A server that goes away is waited for, and one that comes back is told anew that the device is there.

    Args:
        address: host and port of the server.
        key: the device's private key.
        authority: certificate of the authority that signed the server's; None for a server without TLS.
        give_up: seconds without an answer after which it stops trying; None never does.
        tell: told in one line when the server goes away and comes back.

    Raises:
        HostError: on entering and from every method: the key or the server's certificate is refused, or `give_up` is
            over.
    """

    def __init__(
        self,
        address: str,
        key: ec.EllipticCurvePrivateKey,
        authority: Path | None,
        *,
        give_up: float | None = None,
        tell: Callable[[str], None],
    ) -> None:
        self._client = Client(address, key, authority, give_up=give_up, tell=tell)
        self._node, self.met = Node(), 0
        self._asked = dict[str, Metadata]()
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> SuperNode:
        """Connect."""
        try:
            self._activate()
        except BaseException:
            self._client.close()
            raise
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye, if the server listens."""
        self._over.set()
        with contextlib.suppress(httpx.HTTPError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        self._client.close()

    def receive(self) -> tuple[str, bytes] | None:
        """Return a message and its ticket; None if there is none."""
        try:
            found = self._ask(self._client.PullMessages, PullMessagesRequest())
            if not found.messages_list:
                return None
            metadata = message_from_proto(found.messages_list[0]).metadata
            run, id = metadata.run_id, metadata.message_id

            def pull(name: str) -> bytes:
                asked = PullObjectRequest(run_id=run, object_id=name)
                content: bytes = self._ask(self._client.PullObject, asked).object_content
                return content

            body = unpack(id, found.message_object_trees[0], pull)
            confirmed = ConfirmMessageReceivedRequest(run_id=run, message_object_id=id)
            self._ask(self._client.ConfirmMessageReceived, confirmed)
        except Turned:  # by a server that was started anew, and has the message no more
            return None
        self._asked = {id: metadata}
        return None if body is None else (id, body)

    def reply(self, ticket: str, message: bytes) -> None:
        """Answer a message; a server that was started anew asks again."""
        asked = self._asked.pop(ticket)
        # Times are those of the server's clock, which the message was made by.
        metadata = Metadata(
            run_id=asked.run_id, message_id="", src_node_id=asked.dst_node_id, dst_node_id=asked.src_node_id,
            reply_to_message_id=ticket, group_id=asked.group_id, created_at=asked.created_at, ttl=asked.ttl,
            message_type=asked.message_type,
        )  # fmt: skip
        packed = pack(message, metadata)
        request = PushMessagesRequest(
            messages_list=[message_to_proto(packed.message)],
            message_object_trees=[packed.tree],
            clientapp_runtime_list=[0.0],
        )
        try:
            pushed = self._ask(self._client.PushMessages, request)
            for name in pushed.objects_to_push:
                content = packed.objects[name]
                one = PushObjectRequest(
                    run_id=asked.run_id, session_id=pushed.session_id, object_id=name, object_content=content
                )
                self._ask(self._client.PushObject, one)
        except Turned:
            return

    def _ask(self, method: Callable[[Any], Any], request: Any) -> Any:
        """Send a request in the name of this node.

        Raises:
            Turned: if the server does not know the node's run any more; the node has been announced anew then.
            HostError: as `Client.attempt`.
        """
        request.node.CopyFrom(self._node)
        try:
            return self._client.attempt(lambda: method(request))
        except Turned:
            self._activate()
            raise

    def _activate(self) -> None:
        """Say that this device is there.

        Raises:
            HostError: if the server does not know its key, or `Client.attempt` gives up.
        """
        request = ActivateNodeRequest(public_key=self._client.signing.public, heartbeat_interval=INTERVAL)
        try:
            answer = self._client.attempt(lambda: self._client.ActivateNode(request))
        except Turned as no:
            raise HostError(
                f"the server turns this device away: {no.why}", where=self._client.address,
                hint="register the key: its .pub belongs into devices/ of the server's `edgetune certs`",
            ) from no  # fmt: skip
        self._node = Node(node_id=answer.node_id)
        self.met += 1

    def _beat(self) -> None:
        """Give signs of life while a round computes; what goes wrong here, the next request notices."""
        while not self._over.wait(BEAT):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=INTERVAL)
            with contextlib.suppress(httpx.HTTPError):
                self._client.SendNodeHeartbeat(request)
