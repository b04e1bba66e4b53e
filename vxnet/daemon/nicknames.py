"""A name for a container or service that was given none: two words that can be said over a telephone."""

from __future__ import annotations

from collections.abc import Callable, Container

_HOW = "brave calm clever crisp eager fleet gentle glad grand happy keen kind lively lucky mellow neat noble plucky proud quick quiet ready sharp shy smart steady sunny swift tidy witty".split()  # noqa: E501
_WHO = "badger beaver crane curlew dipper dolphin eagle egret falcon finch fox gannet hare heron ibex jackdaw kestrel lark lynx marten merlin osprey otter owl petrel plover raven robin seal siskin stoat swift tern thrush wren".split()  # noqa: E501


def nickname(choose: Callable[[list[str]], str], taken: Container[str]) -> str:
    """``swift_otter``; with a number behind it when the plain ones run out. ``choose`` picks one of a list."""
    for number in range(1, 10_000):
        name = f"{choose(_HOW)}_{choose(_WHO)}"
        if number > 20:
            name += str(number)
        if name not in taken:
            return name
    raise ValueError("every name is taken")
