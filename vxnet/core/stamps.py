"""Stamps in the managers' records: seconds since 1970, by the clock of whoever wrote them, which may have been wrong.

A clock that was set by hours, or that differs so much from another manager's, must not hold up for hours what waits for
seconds.
"""

from __future__ import annotations

from typing import Final

CLOCKS_S: Final = 60.0
"""Two managers' clocks that are further apart are not right, and nothing waits for what they say."""


def due(stamp: float, wait_s: float, now: float) -> float:
    """When ``wait_s`` after ``stamp`` are over: at once, if the stamp is of the future."""
    at = stamp + wait_s
    return at if at - now <= wait_s + CLOCKS_S else now


def is_over(stamp: float, wait_s: float, now: float) -> bool:
    return due(stamp, wait_s, now) <= now
