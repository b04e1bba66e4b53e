"""What vxnet speaks of Serf's own layer, so that a stock agent sees its nodes as it sees its own.

Tags (node meta), the user state of a push/pull, and the leave intent, without which an agent shows a node that has
left as failed. Everything else of Serf's (events, queries, conflict votes) has no effect here; what is meant for
everybody is passed on to agents (:mod:`vxnet.core.relay`). Source: serf's messages.go, delegate.go, serf.go.
"""

from __future__ import annotations

from collections.abc import Mapping

from vxnet.core.oldpack import MalformedError, Packable, pack, unpack_all
from vxnet.core.wire import META_LIMIT
from vxnet.model.errors import CallerError

_TAGS = 0xFF
"""First octet of a meta that holds tags; older agents wrote a bare role."""
_LEAVE, _JOIN, _PUSH_PULL, _USER_EVENT, _QUERY = 0, 1, 2, 3, 4
_NO_BROADCAST = 2
"""Flag of a query that its asker sends to everybody by itself."""
LAST_MESSAGE = 15
"""First octets of user messages up to here are Serf's (10 are in use)."""
_TAG_LIMIT = 64


def encode_tags(tags: Mapping[str, str]) -> bytes:
    """Node meta. Raises :class:`CallerError` if it grows beyond 512 octets."""
    meta = bytes((_TAGS,)) + pack(dict(tags))
    if len(meta) > META_LIMIT:
        raise CallerError(f"the tags take {len(meta)} octets, more than memberlist's {META_LIMIT}")
    return meta


def decode_tags(meta: bytes) -> dict[str, str]:
    """Empty for what is no tags: a foreign agent's meta is its own business."""
    if not meta or meta[0] != _TAGS:
        return {"role": meta.decode(errors="replace")} if meta else {}
    try:
        found = unpack_all(meta[1:])
    except MalformedError:
        return {}
    if not isinstance(found, dict) or len(found) > _TAG_LIMIT:
        return {}
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in found.items()
        if isinstance(value, bytes)
    }


def is_for_everybody(payload: bytes) -> bool:
    """Whether an agent that gets this user message passes it on: intents, events, and queries that do not ask it not
    to."""
    if not payload or payload[0] not in (_LEAVE, _JOIN, _USER_EVENT, _QUERY):
        return False
    try:
        found = unpack_all(payload[1:])
    except MalformedError:
        return False
    flags = found.get(b"Flags", 0) if isinstance(found, dict) else _NO_BROADCAST
    return isinstance(flags, int) and not flags & _NO_BROADCAST


class Clock:
    """Serf's Lamport clock, as far as an intent needs it: a leave counts only if it is newer than the last intent."""

    LIMIT = 1 << 48
    """A peer must not be able to wind it to its end."""

    def __init__(self) -> None:
        self._time = 1

    def next(self) -> int:
        self._time += 1
        return self._time

    def witness(self, seen: object) -> None:
        if isinstance(seen, int) and self._time <= seen < self.LIMIT:
            self._time = seen + 1

    def observe(self, payload: bytes) -> None:
        """An intent of somebody's (user message)."""
        if payload[:1] in (bytes((_LEAVE,)), bytes((_JOIN,))):
            try:
                intent = unpack_all(payload[1:])
            except MalformedError:
                return
            if isinstance(intent, dict):
                self.witness(intent.get(b"LTime"))

    def merge(self, user_state: bytes) -> None:
        """The user state of an agent's push/pull."""
        if user_state[:1] == bytes((_PUSH_PULL,)):
            try:
                state = unpack_all(user_state[1:])
            except MalformedError:
                return
            if isinstance(state, dict):
                self.witness(state.get(b"LTime"))

    def user_state(self) -> bytes:
        """Ours: nothing but the clock, which tells an agent nothing wrong."""
        state: dict[str, Packable] = {
            "LTime": self._time,
            "StatusLTimes": {},
            "LeftMembers": [],
            "EventLTime": 0,
            "Events": [],
            "QueryLTime": 0,
        }
        return bytes((_PUSH_PULL,)) + pack(state)

    def leave_intent(self, node: str) -> bytes:
        return bytes((_LEAVE,)) + pack({"LTime": self.next(), "Node": node, "Prune": False})
