"""How large a packet each path really carries: probes of chosen sizes, in rounds, and what their answers mean.

A route's MTU is what this host believes. Where a switch, a tunnel or the other host's own card takes less, large
packets vanish without a word, as their senders were told otherwise. So echoes are sent that may not be fragmented: one
small, to see whether the path answers at all, and one as large as the route says::

    small    promised
    lost     lost       silent: it is cut, or answers no echoes; nothing is known
    any      answered   as promised
    answered lost       less: a round of sizes between the largest that came back and the smallest that did not, again

The idea is RFC 4821's, with probes that cost the traffic nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from vxnet.model.address import IPAddress

SMALL = 128
"""Octets of an IP packet that every link carries: less than RFC 791's 576, so that one that is narrower is seen too."""
SIZES_A_ROUND = 8
"""1500 octets are settled in four rounds."""


class Probe(NamedTuple):
    destination: IPAddress
    size: int
    """Octets of the whole IP packet."""


class Path(NamedTuple):
    promised: int
    """The route's MTU."""
    carried: int | None
    """The largest packet that came back; None: the path is silent."""

    @property
    def is_short(self) -> bool:
        return self.carried is not None and self.carried < self.promised


class Survey:
    """Of several paths at once: send :meth:`probes`, hand what came back to :meth:`take`, until there are none."""

    def __init__(self, promised: Mapping[IPAddress, int]) -> None:
        self._promised = dict(promised)
        self._open = dict.fromkeys(promised, True)
        self._carried = dict.fromkeys(promised, 0)
        self._lost = dict(promised)
        """The smallest that did not come back."""

    def probes(self) -> list[Probe]:
        return [Probe(one, size) for one, is_open in self._open.items() if is_open for size in self._sizes(one)]

    def _sizes(self, one: IPAddress) -> Iterable[int]:
        promised, low, high = self._promised[one], self._carried[one], self._lost[one]
        if not low:
            return sorted({min(SMALL, promised), promised})
        gap = high - low
        steps = {low + gap * step // (SIZES_A_ROUND + 1) for step in range(1, SIZES_A_ROUND + 1)}
        # The whole once more: one that comes back now was only late before.
        return sorted({size for size in steps if low < size < high} | {promised})

    def take(self, answered: Collection[Probe]) -> None:
        """What came back of the last :meth:`probes`."""
        sent: dict[IPAddress, list[int]] = {}
        for probe in self.probes():
            sent.setdefault(probe.destination, []).append(probe.size)
        for one, sizes in sent.items():
            back = [size for size in sizes if Probe(one, size) in answered]
            low = self._carried[one] = max([self._carried[one], *back])
            # A small one may be lost by accident; of a larger one that came back it is known that it fits.
            self._lost[one] = min([self._lost[one], *(size for size in sizes if size > low)])
            self._open[one] = 0 < low < self._lost[one] - 1 and low < self._promised[one]

    def paths(self) -> dict[IPAddress, Path]:
        return {one: Path(promised, self._carried[one] or None) for one, promised in self._promised.items()}
