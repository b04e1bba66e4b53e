"""So many octets a second, and some at once after a silence: what bounds that others make this node say."""

from __future__ import annotations


class Allowance:
    def __init__(self, rate: float, burst: float, now: float) -> None:
        """``rate``: octets a second. ``burst``: octets at most that have been saved up."""
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._looked = now

    def has_any(self, now: float) -> bool:
        """Whether anything may be sent: that it is more than what is left makes the next one wait longer."""
        self._left = min(self._burst, self._left + (now - self._looked) * self._rate)
        self._looked = now
        return self._left > 0

    def spend(self, octets: int) -> None:
        self._left -= octets
