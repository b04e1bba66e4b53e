"""What two hosts make of each other's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.core import checkup
from vxnet.core.checkup import Packet, Side, Word
from vxnet.core.oldpack import MalformedError

ID = b"12345678"


@given(st.binary(max_size=200))
def test_octets_that_nobody_meant(data: bytes) -> None:
    for payload in (data, checkup.MAGIC + data):
        try:
            word = checkup.decode(payload)
        except MalformedError:
            continue
        assert checkup.decode(checkup.encode(word)) == word
    packet = checkup.read_content(data)
    assert packet is None or checkup.content(packet, len(data))[: len(packet.source)] is not None


@given(st.text(max_size=60), st.booleans(), st.integers(0, 1500))
def test_packets(name: str, large: bool, octets: int) -> None:
    packet = Packet(ID, large, name)
    content = checkup.content(packet, octets)
    assert len(content) >= octets
    assert checkup.read_content(content) == packet


@pytest.mark.parametrize(
    "word",
    [
        Word(b"short", "h1", "udp", (), 0.0),
        Word(ID, "", "udp", (), 0.0),
        Word(ID, "h1", "carrier pigeon", (), 0.0),
    ],
)
def test_impossible_words(word: Word) -> None:
    with pytest.raises(MalformedError, match="impossible"):
        checkup.decode(checkup.encode(word))


def test_what_a_later_version_may_hear_is_passed_over() -> None:
    word = Word(ID, "h1", "udp", ("rumours", "tcp"), 0.0)
    assert checkup.decode(checkup.encode(word)).heard == ("tcp",)


def test_two_sides_learn_what_arrives_and_how_far_the_clocks_are_apart() -> None:
    """h2's clock is 100 s ahead, words take 10 ms there and 30 back; UDP from h1 to h2 is lost."""
    one, other = Side(), Side()
    at = 0.0
    for _ in range(3):
        asked = one.say(ID, "h1", "tcp", at, at, "a", asked=True)
        at += 0.010
        other.hear(asked, at + 100, at)
        at += 0.5
        for by in ("udp", "tcp"):
            answer = other.say(ID, "h2", by, at + 100, at, "b", asked=False)
            one.hear(checkup.decode(checkup.encode(answer)), at + 0.030, at + 0.030)
        at += 0.030
    assert one.here == {"udp", "tcp"}
    assert one.there == {"tcp"}, "what h2 says to have heard"
    assert one.machine == "b"
    assert one.clock_ahead_s == pytest.approx(100, abs=0.011), "half the difference of the two ways is not to be known"
