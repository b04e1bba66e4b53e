"""Lifeguard (Dadgar, Phillips, Currey: arXiv 1707.00788): who is slow doubts itself before it accuses others."""

from __future__ import annotations

from vxnet.core.timing import remaining_suspicion_s


class Awareness:
    """0: healthy. Each missed nack, failed probe or refutation adds one, each ack takes one away."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.score = 0

    def change(self, delta: int) -> None:
        self.score = min(max(self.score + delta, 0), self._limit - 1)

    def scale(self, time_s: float) -> float:
        return time_s * (self.score + 1)


class Suspicion:
    """One node's time to live under suspicion, shortened by each independent accuser."""

    def __init__(self, accuser: str, wanted: int, least_s: float, greatest_s: float, now: float) -> None:
        self._accusers = {accuser}
        self._wanted = wanted
        self._least_s = least_s
        self._greatest_s = greatest_s
        self._started = now

    def confirm(self, accuser: str) -> bool:
        """Whether that is news: a new accuser, and one that still counts."""
        if accuser in self._accusers or len(self._accusers) > self._wanted:
            return False
        self._accusers.add(accuser)
        return True

    def remaining_s(self, now: float) -> float:
        whole = remaining_suspicion_s(len(self._accusers) - 1, self._wanted, self._least_s, self._greatest_s)
        return max(0.0, whole - (now - self._started))
