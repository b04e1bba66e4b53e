"""Octets that nobody meant, in the short form: `make fuzz` looks for new ones, coverage-guided and for ten minutes."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.targets import MESSAGES, PEER, RING, ROW_MESSAGES, TARGETS, node
from vxnet.core import frame, rows, wire

INPUTS = 400
WHOLE_NODES = {"datagrams", "streams", "user_messages", "evidence"}
REASONS = 40
"""Why a packet can be dropped: the counters are as many as the reasons, whatever comes."""


def damaged(rng: random.Random, data: bytes) -> bytes:
    """As a bad wire, a bad peer or a bad disk would."""
    octets = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(octets) + 1)
        match rng.randrange(5):
            case 0 if octets:
                octets[at % len(octets)] = rng.randrange(256)
            case 1:
                del octets[at : at + rng.randrange(9)]
            case 2:
                octets[at:at] = rng.randbytes(rng.randrange(9))
            case 3:
                octets[at:at] = octets[at : at + rng.randrange(99)]
            case 4:
                octets[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)])
    return bytes(octets[: rng.randrange(len(octets) + 1)] if rng.random() < 0.2 else octets)


@pytest.mark.parametrize("name", list(TARGETS))
def test_decoders_refuse_and_go_on(rng: random.Random, name: str) -> None:
    target = TARGETS[name]
    for _ in range(INPUTS // 4 if name in WHOLE_NODES else INPUTS):
        target.run(damaged(rng, rng.choice(target.seeds)))


@pytest.mark.slow
def test_the_coverage_guided_form_runs(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", "2", "packet", "row_message"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" inputs ") == 2 and " 0 inputs" not in run.stdout


def sealed(rng: random.Random) -> list[bytes]:
    """Packets of every kind, as a member sends them."""
    payloads = [wire.encode(message) for message in MESSAGES]
    payloads += [bytes((wire.Type.USER,)) + rows.encode(message) for message in ROW_MESSAGES]
    return [frame.seal_packet(payload, RING, "", rng.randbytes(12), crc=False) for payload in payloads]


def test_forged_and_cut_packets_are_counted_by_reason_and_have_no_effect(rng: random.Random) -> None:
    made = node(keys=(b"k" * 16, b"o" * 32))
    made.datagrams_to_send(10.0)
    before = made.table.root, made.swim.present_hash, made.members()
    packets = sealed(rng)
    for number in range(2000):
        packet = bytearray(rng.choice(packets))
        if number % 2:
            packet = packet[: rng.randrange(len(packet))]
        else:
            packet[rng.randrange(len(packet))] ^= 1 << rng.randrange(8)
        made.receive_datagram(bytes(packet), PEER, 10.0)
        assert made.dropped().total() == number + 1
    assert not made.datagrams_to_send(10.0)
    assert (made.table.root, made.swim.present_hash, made.members()) == before
    assert set(made.dropped()) <= {
        "empty",
        "no key opens it",
        "too short to be encrypted",
        "unknown version of encryption",
        "another cluster's label",
        "a cut-off label",
    }
    assert made.dropped()["no key opens it"] > 500


def test_a_flood_of_garbage_leaves_no_trace_in_memory(rng: random.Random) -> None:
    """What is kept grows with what is believed, and nothing here is: after a first thousand, ten thousand more change
    nothing."""
    made = node()
    seeds = [bytes((wire.Type.USER,)) + rows.encode(message) for message in ROW_MESSAGES]
    # Not "alive": in a plain cluster anybody may enter, up to the limit of members.
    seeds += [wire.encode(message) for message in MESSAGES if not isinstance(message, wire.Alive)]
    now = 10.0

    def flood(count: int) -> None:
        nonlocal now
        for _ in range(count):
            now += 0.01
            made.receive_datagram(damaged(rng, rng.choice(seeds)), PEER, now)
            made.datagrams_to_send(now)
            made.streams_to_open()
            while made.next_event() is not None:
                pass

    flood(1000)
    tracemalloc.start()
    try:
        flood(1000)
        gc.collect()  # what earlier tests have left in cycles is not this one's
        begun = tracemalloc.get_traced_memory()[0]
        flood(9000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - begun
    finally:
        tracemalloc.stop()
    assert grown < 400_000, f"{grown} octets more after 9000 packets"
    assert len(made.dropped()) < REASONS
