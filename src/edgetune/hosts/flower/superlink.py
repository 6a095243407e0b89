"""Flower's SuperLink in this process: its state, its node authentication and its Fleet API, and nothing else of it.

There is no control API: whoever reaches the port can neither submit code nor read the run. Devices speak Flower's own
protocol (protobuf over HTTP), authenticated by their keys.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import cast

from flwr.app import Metadata
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from edgetune.core.errors import DigestError
from edgetune.hosts.flower.objects import pack, unpack

LIFE = 7 * 24 * 3600.0
"""Seconds that a message may wait for its device."""
BEAT = 20.0
"""Seconds between two signs of life of this process's own run, which Flower ends after sixty without one."""
PUSH = timedelta(hours=1)
"""How long a reply may be on its way: Flower drops one of which a part takes three minutes, 22 MB over 1 Mbit/s."""
UNCONFIRMED = 15.0
"""Seconds after which a message that was handed out, and whose receipt nobody confirmed, is handed out again."""


class SuperLink:
    """The server's end of the link (`hosts.link.Link`).

    Messages live in memory: what a server loses when it is killed follows from its ledger once more.

    Args:
        keys: public key of every device, PEM.
    """

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        self.factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(simulation=False), objects
        )
        self._state = cast(InMemoryLinkState, self.factory.state())
        self._begin_push = self._state.start_session
        self._state.start_session = self._patient_push  # type: ignore[method-assign, assignment]
        self._nodes = {
            device: self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
            for device, key in keys.items()
        }
        self._devices = {node: device for device, node in self._nodes.items()}
        self._run = self._state.create_run(
            "edgetune/edgetune", "0", "none", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (run,) = self._state.get_run_info(run_ids=[self._run])
        self._task = int(run.primary_task_id or 0)
        self._state.claim_task(self._task)
        self._state.activate_task(self._task)
        self._beaten = time.monotonic()

    def device_of(self, key: bytes) -> int | None:
        """Return the number of the device with a public key; None for a stranger's."""
        node = self._state.get_node_id_by_public_key(key)
        return None if node is None else self._devices.get(node)

    def gone(self, key: bytes) -> None:
        """Take note that a device's former process is no more."""
        node = self._state.get_node_id_by_public_key(key)
        if node is not None:
            self._state.deactivate_node(node)

    def sessions(self) -> dict[int, str]:
        """Return the devices that are there, with the moment that they came."""
        self._live()
        found = self._state.get_node_info(node_ids=list(self._devices), statuses=[NodeStatus.ONLINE])
        return {self._devices[node.node_id]: str(node.last_activated_at) for node in found}

    def send(self, device: int, message: bytes) -> str:
        """Leave a message for a device and return its ticket."""
        metadata = Metadata(
            run_id=self._run, message_id="", src_node_id=SUPERLINK_NODE_ID, dst_node_id=self._nodes[device],
            reply_to_message_id="", group_id="", created_at=time.time(), ttl=LIFE, message_type="train",
        )  # fmt: skip
        packed = pack(message, metadata)
        with self._state.lock:
            session = self._state.start_session(self._run)
            stored, missing = self._state.store_message_and_object_tree(packed.message, packed.tree, session)
            if not stored:
                raise DigestError("Flower took no message for this device", where=f"device {device}")
            for id in missing:
                self._state.store_object(self._run, session, id, packed.objects[id])
        return packed.id

    def replies(self, tickets: Collection[str]) -> dict[str, bytes]:
        """Return the replies that are there, each once.

        They are read from the store itself: Flower's own way answers in the stead of a device that replied and left.
        """
        self._live()
        state, found = self._state, dict[str, bytes]()
        with state.lock:
            replied = {one: state.message_ins_id_to_message_res_id.get(one) for one in tickets}
        for ticket, id in replied.items():
            if id is None:
                continue
            tree = state.object_store.get_object_tree(id)
            body = unpack(id, tree, partial(state.get_object, self._run))
            if body is not None:
                found[ticket] = body
                state.object_store.delete(id)
                self.forget([ticket])
        return found

    def forget(self, tickets: Collection[str]) -> None:
        """Take messages back, with what there is of replies to them."""
        state = self._state
        with state.lock:
            for ticket in tickets:
                state.object_store.delete(ticket)
                state.object_store.delete(state.message_ins_id_to_message_res_id.get(ticket, ""))
            state.delete_messages(message_ins_ids=set(tickets))

    def withdraw(self, tickets: Collection[str]) -> set[str]:
        """Take back what has not been fetched yet, and say what that is."""
        with self._state.lock:
            there = self._state.message_ins_store
            found = {one for one in tickets if one in there and not there[one].metadata.delivered_at}
            self.forget(found)
        return found

    def _live(self) -> None:
        """Say that the run goes on, hand out again what may not have arrived, and drop what was never pushed whole."""
        if time.monotonic() - self._beaten > BEAT:
            self._state.acknowledge_task_heartbeat(self._task)
            self._beaten = time.monotonic()
            with self._state.lock:
                for message in self._state.message_ins_store.values():
                    self._again(message.metadata)
            self._sweep()

    def _patient_push(self, run: int) -> str:
        """Begin a push as Flower does, but with time for slow lines."""
        with self._state._lock_object_push_sessions:
            id = self._begin_push(run)
            self._state._object_push_sessions[id].expires_at += PUSH
        return id

    def _sweep(self) -> None:
        """End pushes whose time is over: Flower ends none by itself, and every late reply leaves one."""
        state, now = self._state, datetime.now(timezone.utc)
        with state.lock, state._lock_object_push_sessions:
            for id, push in list(state._object_push_sessions.items()):
                if push.expires_at <= now:
                    state._cleanup_push_session(id, cleanup_messages=True)

    def _again(self, metadata: Metadata) -> None:
        """Let the next poll have a message whose answer got lost on the way: a device confirms each by deleting it."""
        taken = metadata.delivered_at
        if taken and self._state.object_store.get(metadata.message_id) is not None:
            age = datetime.now(timezone.utc) - datetime.fromisoformat(taken)
            if age.total_seconds() > UNCONFIRMED:
                metadata.delivered_at = ""
