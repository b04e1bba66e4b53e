"""The rows that count, by owner, and what is remembered of them from one look to the next.

Who computes something of all rows (the plan, the names) does it anew each time, from the whole. With ten thousand rows
that is only cheap if an owner whose rows are the very same objects as last time costs one comparison: so rows are
handed about in one tuple an owner, and :class:`ByOwner` keeps what was made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Generic, TypeAlias, TypeVar

from vxnet.model.row import RowKey, Value, Version

T = TypeVar("T")

Fact: TypeAlias = tuple[RowKey, Version, Value]


class Facts:
    """An owner's tuple is the same object for as long as nothing of it changes, and is not empty."""

    __slots__ = ("by_owner",)

    def __init__(self, by_owner: Mapping[str, tuple[Fact, ...]]) -> None:
        self.by_owner = by_owner

    @classmethod
    def gather(cls, rows: Iterable[Fact]) -> Facts:
        """Rows in any order; those that are gathered already stay as they are."""
        if isinstance(rows, Facts):
            return rows
        found: dict[str, list[Fact]] = {}
        for row in rows:
            found.setdefault(row[0].owner, []).append(row)
        return cls({owner: tuple(group) for owner, group in found.items()})

    def of(self, owners: Container[str]) -> Facts:
        return Facts({owner: rows for owner, rows in self.by_owner.items() if owner in owners})

    def __iter__(self) -> Iterator[Fact]:
        return chain.from_iterable(self.by_owner.values())

    def __len__(self) -> int:
        return sum(map(len, self.by_owner.values()))


NO_FACTS = Facts({})


class ByOwner(Generic[T]):
    """Something that follows from one owner's rows alone, computed once for as long as they are the same."""

    def __init__(self, compute: Callable[[str, tuple[Fact, ...]], T]) -> None:
        self._compute = compute
        self._kept: dict[str, tuple[tuple[Fact, ...], T]] = {}

    def of(self, facts: Facts) -> dict[str, T]:
        before, self._kept = self._kept, {}
        found = {}
        for owner, rows in facts.by_owner.items():
            held = before.get(owner)
            if held is None or held[0] is not rows:
                held = rows, self._compute(owner, rows)
            self._kept[owner] = held
            found[owner] = held[1]
        return found


class Distinct(Generic[T]):
    """Whether sets have nothing in common: asked again and again, when one of many has changed."""

    def __init__(self) -> None:
        self._sets: dict[Hashable, frozenset[T]] = {}
        self._union: set[T] | None = set()
        """None: they had something in common last time."""

    def are(self, sets: Mapping[Hashable, frozenset[T]]) -> bool:
        """A set that is the same object under the same key as last time costs one comparison."""
        before, self._sets = self._sets, dict(sets)
        if self._union is None:
            return self._are_anew()
        union, more = self._union, []
        for key in before.keys() - sets.keys():
            union -= before[key]
        for key, one in sets.items():
            held = before.get(key)
            if held is None:
                more.append(one)
            elif held is not one:
                union -= held - one
                more.append(one - held)
        for one in more:
            if not union.isdisjoint(one):
                self._union = None
                return False
            union |= one
        return True

    def _are_anew(self) -> bool:
        union: set[T] = set().union(*self._sets.values())
        is_distinct = len(union) == sum(map(len, self._sets.values()))
        self._union = union if is_distinct else None
        return is_distinct
