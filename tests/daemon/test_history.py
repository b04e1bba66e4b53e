"""Events are kept, told and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vxnet.core.history import Look
from vxnet.daemon.history import KEPT, History
from vxnet.model.api import Event


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def repaired(history: History, times: int) -> None:
    history.observe(Look(repairs=times))


async def some(events: AsyncIterator[Event], count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [(await anext(events)).attributes.get("repairs", "missed") for _ in range(count)]


async def test_the_first_look_is_no_event() -> None:
    history = History(Clock())
    repaired(history, 5)
    assert [event async for event in history.events(0.0, 0.0)] == []


async def test_the_past_on_request_and_what_comes_at_once() -> None:
    clock = Clock()
    history = History(clock)
    for number in range(4):
        repaired(history, number)
        clock.now += 10
    past = [event.attributes["repairs"] async for event in history.events(1020.0, 1025.0)]
    assert past == ["2"]
    new, all_of_it = history.events(None, None), history.events(0.0, None)
    assert await some(all_of_it, 3) == ["1", "2", "3"]
    waiting = [asyncio.ensure_future(some(one, 2)) for one in (new, all_of_it)]
    await asyncio.sleep(0)
    repaired(history, 4)
    repaired(history, 5)
    assert [await one for one in waiting] == [["4", "5"]] * 2


async def test_a_reader_that_is_too_slow_is_told_what_it_missed() -> None:
    history = History(Clock())
    repaired(history, 0)
    slow = history.events(0.0, None)
    repaired(history, 1)
    assert await some(slow, 1) == ["1"]
    for number in range(2, KEPT + 12):
        repaired(history, number)
    told = await some(slow, 2)
    assert told == ["missed", "12"]


async def test_it_ends_when_it_shall() -> None:
    loop = asyncio.get_running_loop()
    history = History(loop.time)
    repaired(history, 0)
    assert [event async for event in history.events(None, loop.time() + 0.1)] == []
