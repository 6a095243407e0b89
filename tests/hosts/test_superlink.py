"""What the server's end of the link keeps: nothing of what is over."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

pytest.importorskip("flwr")
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.app import Metadata

from edgetune.hosts.flower import superlink as module
from edgetune.hosts.flower.objects import Packed, pack
from edgetune.hosts.flower.superlink import SuperLink
from edgetune.hosts.pem import public_pem


class Device:
    """A device's calls, without HTTP."""

    def __init__(self, link: SuperLink, key: bytes) -> None:
        self.link, self.state = link, link._state
        self.node = self.state.get_node_id_by_public_key(key)
        self.state.activate_node(self.node, 20.0)

    def fetch(self) -> str | None:
        """Take the next message, as PullMessages and ConfirmMessageReceived do."""
        found = self.state.get_message_ins(self.node, limit=1)
        if not found:
            return None
        self.state.object_store.delete(found[0].metadata.message_id)
        return str(found[0].metadata.message_id)

    def begin(self, ticket: str, body: bytes) -> tuple[Packed, str, list[str]]:
        """Announce a reply."""
        asked = self.state.message_ins_store.get(ticket)
        run = self.link._run
        made = datetime.now(timezone.utc).timestamp() if asked is None else asked.metadata.created_at
        packed = pack(body, Metadata(
            run_id=run, message_id="", src_node_id=self.node, dst_node_id=1, reply_to_message_id=ticket,
            group_id="", created_at=made, ttl=module.LIFE, message_type="train",
        ))  # fmt: skip
        push = self.state.start_session(run)
        _, missing = self.state.store_message_and_object_tree(packed.message, packed.tree, push)
        return packed, push, missing

    def reply(self, ticket: str, body: bytes) -> None:
        """Push a whole reply."""
        packed, push, missing = self.begin(ticket, body)
        for id in missing:
            assert self.state.store_object(self.link._run, push, id, packed.objects[id])


@pytest.fixture
def link() -> SuperLink:
    """Return a server's end that knows one device."""
    key = public_pem(generate_private_key(SECP384R1()).public_key())
    made = SuperLink({7: key})
    made.key = key  # type: ignore[attr-defined]
    return made


@pytest.fixture
def device(link: SuperLink) -> Device:
    """Return that device, which is there."""
    return Device(link, link.key)  # type: ignore[attr-defined]


def kept(link: SuperLink) -> dict[str, int]:
    """Return how many things Flower's state holds."""
    state = link._state
    return {
        "objects": len(state.object_store),
        "messages": len(state.message_ins_store),
        "replies": len(state.message_res_store),
        "pairs": len(state.message_ins_id_to_message_res_id),
        "pushes": len(state._object_push_sessions),
        "roots": len(state._object_push_session_by_root),
    }


def test_a_hundred_rounds_leave_nothing_behind(link: SuperLink, device: Device) -> None:
    before = kept(link)
    for number in range(100):
        ticket = link.send(7, b"down %d" % number)
        assert device.fetch() == ticket
        device.reply(ticket, b"up %d" % number)
        assert link.replies([ticket]) == {ticket: b"up %d" % number}
    assert kept(link) == before


def test_what_a_device_has_not_fetched_is_taken_back_and_what_it_has_is_not(
    link: SuperLink, device: Device
) -> None:
    working = link.send(7, b"first")
    assert device.fetch() == working
    waiting = link.send(7, b"second")
    assert link.withdraw([working, waiting]) == {waiting}
    assert device.fetch() is None
    device.reply(working, b"up")
    assert link.replies([working, waiting]) == {working: b"up"}


def test_a_reply_that_was_not_pushed_whole_goes_with_its_message(link: SuperLink, device: Device) -> None:
    before = kept(link)
    ticket = link.send(7, b"down")
    device.fetch()
    packed, push, missing = device.begin(ticket, bytes(1000))
    assert device.state.store_object(link._run, push, missing[0], packed.objects[missing[0]])
    assert link.replies([ticket]) == {}
    link.forget([ticket])
    assert kept(link)["objects"] == before["objects"]
    assert kept(link)["replies"] == 0


def test_replies_that_nobody_waits_for_leave_nothing_once_their_time_is_over(
    link: SuperLink, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(link)
    for number in range(10):
        ticket = link.send(7, b"down %d" % number)
        device.fetch()
        link.forget([ticket])
        _, _, missing = device.begin(ticket, b"late")
        assert missing == []
    assert kept(link) == {**before, "pushes": 10}
    monkeypatch.setattr(module, "BEAT", 0.0)
    link.sessions()
    assert kept(link)["pushes"] == 10, "they may still go on"
    for push in link._state._object_push_sessions.values():
        push.expires_at = datetime.now(timezone.utc) - timedelta(seconds=1)
    link.sessions()
    assert kept(link) == before


def test_a_reply_has_an_hour_for_its_way(link: SuperLink, device: Device) -> None:
    ticket = link.send(7, b"down")
    device.fetch()
    _, push, _ = device.begin(ticket, bytes(1000))
    left = link._state._object_push_sessions[push].expires_at - datetime.now(timezone.utc)
    assert timedelta(hours=1) < left < timedelta(hours=1.1)
