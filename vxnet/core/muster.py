"""Memberships compared: what a lost packet or a partition kept from somebody, found for 1 kB instead of a whole list.

Between vxnet nodes only, in place of memberlist's periodic push/pull, which at 10,000 nodes is 2 MB. Agents that are
not vxnet's still get that.

::

    Digest ── hash over the members that are here ──> equal: done
    Roll <── 128 hashes, by place on the ring      ──
    Present ── whom I see in the buckets that differ, 8 octets each ──>
    States <── whom you lack, and whom I lack ── (and back)

As with a push/pull, the word of a third party is believed but not passed on (:mod:`vxnet.core.exchange`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vxnet.core import rows, wire
from vxnet.core.exchange import state_of
from vxnet.core.members import Address, Member, hash_member
from vxnet.core.oldpack import IncompleteError, MalformedError
from vxnet.core.roster import BUCKETS, bucket_of
from vxnet.core.rows import Present, Roll, States

if TYPE_CHECKING:
    from vxnet.core.swim import Swim

WHOLE = 16
"""Up to so many members the whole list is asked for: it is as short."""
COMPARED = 1000
"""In a larger cluster somebody is always in between, so that of n nodes so many ask at each difference they see."""
PAUSE_S = 1.0
"""Between two answers to one node."""


def differs(swim: Swim, theirs: bytes, sender: Address) -> bytes:
    """The node at ``sender`` sees others than this one does: what to tell it, empty for nothing."""
    if theirs == octets(swim.present_hash) or swim.at(sender) is None:
        return b""
    if swim.present <= WHOLE:
        swim.pull_from(sender)
        return b""
    if swim.rng.random() * swim.present >= COMPARED:
        return b""
    return rows.encode(Roll(b"".join(octets(bucket) for bucket in swim.members.buckets), swim.me.name))


def hear_roll(swim: Swim, roll: Roll) -> tuple[Address, bytes] | None:
    """(whom to answer, what)."""
    source = swim.members.get(roll.source)
    if source is None or not source.present or len(roll.hashes) != 8 * BUCKETS:
        raise MalformedError("not a roll of a member")
    found = differing(roll.hashes, swim.members.buckets)
    if not found:
        return None
    hashes = b"".join(octets(hash_member(member)) for member in _here(swim, set(found)))
    return source.endpoint, rows.encode(Present(tuple(found), hashes, swim.me.name))


def hear_present(swim: Swim, present: Present) -> tuple[Address, bytes] | None:
    source = swim.members.get(present.source)
    if source is None or not source.present or len(present.hashes) % 8:
        raise MalformedError("not a list of a member")
    # The answer may be long, and who asks may not be who it says.
    key = ("mustered", source.name)
    if key in swim.agenda:
        return None
    swim.agenda.after(PAUSE_S, key, lambda: None)
    theirs = {present.hashes[at : at + 8] for at in range(0, len(present.hashes), 8)}
    mine = {octets(hash_member(member)): member for member in _here(swim, set(present.buckets))}
    states = _pack([member for hash_, member in mine.items() if hash_ not in theirs])
    return source.endpoint, rows.encode(States(states, b"".join(theirs - mine.keys()), swim.me.name))


def hear_states(swim: Swim, states: States) -> tuple[Address, bytes] | None:
    source = swim.members.get(states.source)
    if source is None or not source.present or len(states.lacking) % 8:
        raise MalformedError("not states of a member")
    told = _unpack(states.states)
    before = {node.name: swim.members.get(node.name) for node in told}
    swim.merge(told, source.endpoint)
    # Whom the other sees and this one holds for gone: it should hear of that.
    answer = [member for member in before.values() if member is not None and not member.present]
    lacking = {states.lacking[at : at + 8] for at in range(0, len(states.lacking), 8)}
    if lacking:
        answer += [m for m in swim.members.values() if m.present and octets(hash_member(m)) in lacking]
    if not answer:
        return None
    return source.endpoint, rows.encode(States(_pack(answer), b"", swim.me.name))


def octets(hash_: int) -> bytes:
    return hash_.to_bytes(8, "big")


def differing(theirs: bytes, mine: Sequence[int]) -> list[int]:
    """The buckets whose hashes, eight octets each in ``theirs``, are not the same."""
    return [number for number, hash_ in enumerate(mine) if theirs[8 * number : 8 * number + 8] != octets(hash_)]


def _here(swim: Swim, buckets: set[int]) -> list[Member]:
    return [member for member in swim.members.values() if bucket_of(member.name) in buckets and member.present]


def _pack(members: list[Member]) -> bytes:
    return b"".join(wire.encode_node_state(state_of(member)) for member in members)


def _unpack(packed: bytes) -> list[wire.NodeState]:
    nodes: list[wire.NodeState] = []
    at = 0
    try:
        while at < len(packed):
            node, at = wire.decode_node_state(packed, at)
            nodes.append(node)
    except IncompleteError as error:
        raise MalformedError("states that end in the middle") from error
    return nodes
