"""The control socket of the user-space tunnel, when who is at one of its ends is slow, gone, wrong or one too many."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.host.uvxlan_rig import MTU, VNI, End, Pair, octets
from vxnet.host import forwarder, tap, uvxlan
from vxnet.host.forwarder import Forwarder
from vxnet.model.errors import HostError

pytestmark = pytest.mark.host

PATIENCE_S = 20.0


def path_of(end: End) -> Path:
    (path,) = end.directory.glob("*.sock")
    return path


def connect(end: End) -> Forwarder:
    return Forwarder(str(path_of(end)))


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """The process is there, and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_ended(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/exe").exists():
        assert time.monotonic() < deadline, "the forwarder goes on"
        time.sleep(0.01)


def row(number: int, vtep: str = "192.0.2.9") -> dict[bytes, bytes]:
    return {struct.pack(">HI", 0x0200, number): socket.inet_aton(vtep)}


def test_a_late_reply_is_nobodys(make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _two = make_pair("user", "kernel")
    with monkeypatch.context() as hasty:
        hasty.setattr(forwarder, "ANSWER_S", 0.2)
        late = connect(one)
    with late:
        with standing_still(one.forwarders_pid()), pytest.raises(HostError, match="does not answer"):
            late.peers()
        # The forwarder has read the question, and answered it.
        assert one.forwarder.segments() == {VNI: (MTU, True, 1)}
        with pytest.raises(HostError, match="does not answer"):
            late.segments()


def test_another_questions_reply_ends_the_connection(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        with Forwarder(path) as told:
            other, _ = listener.accept()
            with other:
                for _ in range(2):  # empty replies to SEGMENTS: that nothing is held
                    other.send(struct.pack("=Ii", 9, 0))
                with pytest.raises(HostError, match="another question"):
                    told.peers()
                with pytest.raises(HostError, match="does not answer"):
                    told.segments()


def test_stop_is_obeyed_though_who_asked_has_gone(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _two = make_pair("user", "kernel")
    pid, path = one.forwarders_pid(), path_of(one)
    monkeypatch.setattr(forwarder, "ANSWER_S", 0.2)
    with standing_still(pid):
        with pytest.raises(HostError, match=r"does not end.*pkill"):
            uvxlan.stop(one.directory)
        assert path.exists(), "or nobody would find it again"
    wait_ended(pid)
    assert not uvxlan.stop(one.directory)
    assert not path.exists()


def test_there_are_more_connections_than_it_takes(make_pair: Callable[..., Pair]) -> None:
    """Those beyond wait until there is room for them."""
    one, _two = make_pair("user", "kernel")
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(one)) for _ in range(40)]
        for told in crowd[:20]:
            assert told.peers() == {one.remote_packed}
        threads = stack.enter_context(ThreadPoolExecutor(1))
        waiting = threads.submit(crowd[-1].peers)
        for told in crowd[:-1]:
            told.close()
        assert waiting.result() == {one.remote_packed}
        assert uvxlan.stop(one.directory)


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_segment_whose_tap_is_refused_is_not_there(
    make_pair: Callable[..., Pair], tmp_path: Path, known: bool
) -> None:
    """Half a TAP would be read by nobody, and look as if it were."""
    one, _two = make_pair("user", "kernel", queues=2)
    if not known:
        one.forwarder.remove(VNI)
    made = tap.open_tap(one.fd, "other", 2)
    descriptors = [made.descriptors[0], os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)]  # which no epoll takes
    with pytest.raises(HostError, match="refused: Operation not permitted"):
        one.forwarder.add(VNI, MTU, made._replace(descriptors=descriptors))
    for descriptor in {*made.descriptors, *descriptors}:
        os.close(descriptor)
    assert one.forwarder.segments() == {}
    assert one.links().keys() & {"tunnel", "other"} == set()
    again = tap.open_tap(one.fd, "tunnel", 2)
    one.forwarder.add(VNI, MTU, again)
    for descriptor in again.descriptors:
        os.close(descriptor)
    assert one.forwarder.segments() == {VNI: (MTU, True, 0)}


def test_half_a_replacement_is_nobodys(make_pair: Callable[..., Pair]) -> None:
    one, _two = make_pair("user", "kernel")
    before = {octets(one.other_mac): one.remote_packed}
    bad = {mac: vtep for number in range(5000) for mac, vtep in row(number).items()} | {b"no MAC": b"no VTEP"}
    with connect(one) as first, connect(one) as second:
        with pytest.raises(HostError, match="Bad message"):
            first.replace(VNI, bad)
        assert second.rows(VNI) == before
        second.replace(VNI, row(1))
        assert second.rows(VNI) == row(1)
        with pytest.raises(HostError, match="does not answer"):
            first.replace(VNI, row(2))
    with connect(one) as third:
        third.replace(VNI, row(3))
    assert one.forwarder.rows(VNI) == row(3)


def test_two_replace_the_same_rows_at_a_time(make_pair: Callable[..., Pair]) -> None:
    """Each replaces all by all that is its own."""
    one, _two = make_pair("user", "kernel")
    wishes = [{mac: vtep for at in range(6000) for mac, vtep in row(which << 16 | at).items()} for which in (1, 2)]
    one.forwarder.replace(VNI, wishes[0])

    def insist(wish: dict[bytes, bytes]) -> None:
        with connect(one) as told:
            for _ in range(20):
                told.replace(VNI, wish)

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(insist, wish) for wish in wishes]
        while not all(done.done() for done in both):
            assert one.forwarder.segments()[VNI].rows == 6000
        for done in both:
            done.result()
    assert one.forwarder.rows(VNI) in wishes
