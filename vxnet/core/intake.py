"""Batches that have come and whose signatures are still to be looked at: a few at a time, between other things.

A signature takes 0.1 ms, the rest of a packet a third of that. If each were checked as it comes, a flood of rows would
hold up the probes behind it, and what the socket cannot hold meanwhile would be lost, probes among it. So a flood waits
here; what finds no room is dropped, and found by comparison. Nothing comes into the table, or is passed on, before it
was checked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from vxnet.core.agenda import Agenda
from vxnet.core.members import Address
from vxnet.core.roster import Span
from vxnet.core.rows import Batch

AT_ONCE = 32
FLOODED = 8
"""… and while so many more come meanwhile: packets first."""
PAUSE_S = 0.001
"""Between two lots: the sockets have their turn."""
BATCHES_LIMIT = 1 << 14
OCTETS_LIMIT = 8 << 20


class Arrival(NamedTuple):
    """How a batch came."""

    sender: Address
    span: Span | None
    """Of the ring: who depends on this node for it."""
    is_found: bool
    """By comparing tables."""
    is_rare: bool
    """Others may lack it too."""


class Intake:
    def __init__(self, agenda: Agenda, check: Callable[[Batch, Arrival], None]) -> None:
        """``check`` is called with each in the order in which they came."""
        self._agenda = agenda
        self._check = check
        self._waiting: OrderedDict[Batch, Arrival] = OrderedDict()
        self._octets = 0
        self._came = 0
        """Since the last lot."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, batch: Batch, arrival: Arrival) -> bool:
        """False: no room. What waits already waits once, and is dealt with as either way of coming asks for."""
        before = self._waiting.get(batch)
        if before is not None:
            self._waiting[batch] = before._replace(
                span=before.span or arrival.span,
                is_found=before.is_found or arrival.is_found,
                is_rare=before.is_rare or arrival.is_rare,
            )
            return True
        if len(self._waiting) >= BATCHES_LIMIT or self._octets + len(batch.content) > OCTETS_LIMIT:
            return False
        self._waiting[batch] = arrival
        self._octets += len(batch.content)
        self._came += 1
        if len(self._waiting) == 1:
            self._agenda.after(0.0, "rows came", self._check_some)
        return True

    def _check_some(self) -> None:
        lot = AT_ONCE if self._came < FLOODED else FLOODED
        self._came = 0
        for _ in range(min(lot, len(self._waiting))):
            batch, arrival = self._waiting.popitem(last=False)
            self._octets -= len(batch.content)
            self._check(batch, arrival)
        if self._waiting:
            self._agenda.after(PAUSE_S, "rows came", self._check_some)
