"""All members that a node knows, found by name, by address and by node id, and drawn at random without a look at all.

Also the ring: the vxnet nodes that are here, in an order that all nodes agree on, which is what rows travel along
(:mod:`vxnet.core.push`).
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from vxnet.core.layered import Layered
from vxnet.core.members import Address, Member, hash_member

BUCKETS = 128
DRAWS = 8
"""Draws for each member wanted before all are looked at."""


class Dice(Protocol):
    def randrange(self, stop: int, /) -> int: ...


class Span(NamedTuple):
    """An arc of the ring: from ``begin`` up to before ``end``, which may lie beyond the ring's seam."""

    begin: int
    end: int


class Roster(Mapping[str, Member]):
    def __init__(self, base: Roster | None = None) -> None:
        """``base``: somebody's whose view this one begins with; it must not change any more."""
        self._members: Layered[str, Member] = Layered(None if base is None else base._members)
        self._at: Layered[Address, str] = Layered(None if base is None else base._at)
        self._ids: Layered[str, str] = Layered(None if base is None else base._ids)
        self._order: list[str] = [] if base is None else base._order
        self._ring: list[tuple[int, str]] = [] if base is None else base._ring
        self._is_shared = base is not None
        self._foreign: dict[str, None] = {} if base is None else dict(base._foreign)
        self.absent: dict[str, None] = {} if base is None else dict(base.absent)
        """Names of those that are dead or have left."""
        self.present: int = 0 if base is None else base.present
        """How many are alive or suspect."""
        self.present_hash: int = 0 if base is None else base.present_hash
        """XOR over them: equal where two nodes see the same ones, with the same incarnations."""
        self.buckets: list[int] = [0] * BUCKETS if base is None else list(base.buckets)
        """The same by place on the ring."""

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def get(self, name: str, default: Member | None = None) -> Member | None:  # type: ignore[override]
        return self._members.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def at(self, addr: Address) -> Member | None:
        name = self._at.get(addr)
        return None if name is None else self._members.get(name)

    def of_id(self, node_id: str) -> Member | None:
        """The vxnet node that calls itself so."""
        name = self._ids.get(node_id)
        member = None if name is None else self._members.get(name)
        return member if member is not None and member.id == node_id else None

    def put(self, after: Member) -> Member | None:
        """The member that ``after`` takes the place of."""
        name = after.name
        before = self._members.get(name)
        self._members[name] = after
        if before is None:
            self._own_lists()
            self._order.append(name)
        was = before is not None and before.present
        self.present += after.present - was
        difference = hash_member(before) if before is not None and was else 0
        if after.present:
            difference ^= hash_member(after)
            self.absent.pop(name, None)
        else:
            self.absent[name] = None
        self.present_hash ^= difference
        self.buckets[bucket_of(name)] ^= difference
        if after.present and not after.is_vxnet:
            self._foreign[name] = None
        else:
            self._foreign.pop(name, None)
        if before is None or before.endpoint != after.endpoint:
            if before is not None and self._at.get(before.endpoint) == name:
                del self._at[before.endpoint]
            self._at[after.endpoint] = name
        if before is not None and before.id != after.id and self._ids.get(before.id) == name:
            del self._ids[before.id]
        if after.is_vxnet and self._ids.get(after.id) != name:
            other = self.of_id(after.id)
            # Under another name it may be here, while the old one is dead.
            if other is None or after.present or not other.present:
                self._ids[after.id] = name
        on_ring, wanted = was and before is not None and before.is_vxnet, after.present and after.is_vxnet
        if on_ring != wanted:
            self._own_lists()
            place = (position(name), name)
            at = bisect.bisect_left(self._ring, place)
            if wanted:
                self._ring.insert(at, place)
            elif self._ring[at : at + 1] == [place]:
                del self._ring[at]
        return before

    def remove(self, name: str) -> None:
        """Of one that is not present."""
        member = self._members.get(name)
        if member is None or member.present:
            return
        self._own_lists()
        self._order.remove(name)
        self.absent.pop(name, None)
        del self._members[name]
        if self._at.get(member.endpoint) == name:
            del self._at[member.endpoint]
        if self._ids.get(member.id) == name:
            del self._ids[member.id]

    def pick(
        self, dice: Dice, count: int, wanted: Callable[[Member], bool], besides: Sequence[str] = ()
    ) -> list[Member]:
        """Up to ``count`` random members for which ``wanted`` holds."""
        chosen: list[Member] = []
        names: set[str] = set(besides)
        draws = DRAWS * count
        if draws < len(self._order):
            for _ in range(draws):
                name = self._order[dice.randrange(len(self._order))]
                if name not in names:
                    member = self._members[name]
                    if wanted(member):
                        names.add(name)
                        chosen.append(member)
                        if len(chosen) == count:
                            return chosen
        found = [member for name, member in self._members.items() if name not in names and wanted(member)]
        return chosen + _draw(dice, found, count - len(chosen))

    def pick_absent(self, dice: Dice, count: int, wanted: Callable[[Member], bool]) -> list[Member]:
        """The same of those that are not here."""
        found = [member for name in self.absent if wanted(member := self._members[name])]
        return _draw(dice, found, count)

    def pick_foreign(self, dice: Dice, count: int) -> list[Member]:
        """Of those that are here and not vxnet's."""
        return _draw(dice, [self._members[name] for name in self._foreign], count)

    def nth(self, number: int) -> Member:
        return self._members[self._order[number]]

    def divide(
        self, dice: Dice, span: Span, me: str, count: int, audience: Callable[[Member], bool] | None = None
    ) -> list[tuple[Member, Span | None]]:
        """Who of ``span`` shall pass something on to which part of it: about ``count`` parts, of equal size. None:
        there is nobody besides it in its part. ``audience``: whom it is for, if not for all.

        Whatever two nodes know differently, nobody is left out that the one who divides knows, and nobody is told
        twice: the parts are arcs of the ring, not lists of names.
        """
        if span.begin == span.end:
            return []
        here = position(me)
        is_within = here in range(span.begin, span.end) if span.begin < span.end else not span.end <= here < span.begin
        # Cut at its own place, else somebody further down would send it back.
        arcs = [Span(span.begin, here), Span(here + 1, span.end)] if is_within else [span]
        found = [(arc, self._places(arc)) for arc in arcs]
        if audience is not None:
            found = [(arc, [place for place in places if audience(self._members[place[1]])]) for arc, places in found]
        total = sum(len(places) for _, places in found)
        if total <= count:
            return [(self._members[name], None) for _, places in found for _, name in places]
        parts: list[tuple[Member, Span | None]] = []
        for arc, places in found:
            if places:
                parts += self._parts(dice, arc, places, min(len(places), max(1, round(count * len(places) / total))))
        return parts

    def _places(self, arc: Span) -> list[tuple[int, str]]:
        ring = self._ring
        first, last = bisect.bisect_left(ring, (arc.begin, "")), bisect.bisect_left(ring, (arc.end, ""))
        return ring[first:last] if arc.begin <= arc.end else ring[first:] + ring[:last]

    def _parts(
        self, dice: Dice, arc: Span, places: Sequence[tuple[int, str]], count: int
    ) -> Iterator[tuple[Member, Span | None]]:
        bounds = [len(places) * part // count for part in range(count + 1)]
        # The first part begins where the arc does, not with its first node: there may be one that is not known here.
        begins = [arc.begin, *(places[bound][0] for bound in bounds[1:-1]), arc.end]
        for low, high, begin, end in zip(bounds, bounds[1:], begins, begins[1:], strict=False):
            delegate = self._members[places[low + dice.randrange(high - low)][1]]
            if delegate.status != "alive":
                delegate = self._members[places[low + dice.randrange(high - low)][1]]
            yield delegate, Span(begin, end) if high - low > 1 else None

    def _own_lists(self) -> None:
        if self._is_shared:
            self._order, self._ring, self._is_shared = list(self._order), list(self._ring), False


class Round:
    """Numbers below a length, each once before any comes again, in an order of one's own: a random stride that has no
    divisor in common with the length, from a random start. A shuffled list would do the same, and be a list."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._length = self._left = self._at = self._stride = 0

    def next(self, length: int) -> int:
        """``length`` ≥ 1, that of the moment: another one takes effect in the next round."""
        if not self._left or self._length > length:
            self._length = self._left = length
            self._at = self._dice.randrange(length)
            self._stride = 1 + self._dice.randrange(length)
            while math.gcd(self._stride, length) != 1:
                self._stride += 1
        self._left -= 1
        self._at = (self._at + self._stride) % self._length
        return self._at


@lru_cache(maxsize=1 << 15)
def position(name: str) -> int:
    """On the ring."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def bucket_of(name: str) -> int:
    return position(name) % BUCKETS


def all_besides(me: str) -> Span:
    return Span(position(me) + 1, position(me))


def _draw(dice: Dice, found: list[Member], count: int) -> list[Member]:
    chosen: list[Member] = []
    while found and len(chosen) < count:
        at = dice.randrange(len(found))
        found[at], found[-1] = found[-1], found[at]
        chosen.append(found.pop())
    return chosen
