"""What the daemon says to systemd, heard at the other end. With the real one: tests/vm."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vxnet.host import systemd
from vxnet.model.errors import HostError


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@vxnet-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1", "STATUS=well")
        assert listener.recv(100) == b"READY=1\nSTATUS=well"
    systemd.notify("WATCHDOG=1")  # nobody listens: no reason to end
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    assert systemd.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")  # it means another process
    assert systemd.watchdog_s() is None


class Manager:
    """systemd's socket as far as one call goes: it answers each connection with the next of ``answers``."""

    def __init__(self, path: Path, answers: list[tuple[str, str] | None]) -> None:
        self.requests: list[bytes] = []
        self.files: list[int] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            peer, _ = self._listener.accept()
            peer.settimeout(10)
            with peer:
                said = b""
                while not said.endswith(b"BEGIN\r\n"):
                    said += peer.recv(1000)
                assert said.startswith(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode())
                peer.sendall(b"OK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n")
                data, files, _, _ = socket.recv_fds(peer, 65536, 4)
                self.files += files
                self.requests.append(data)
                # A signal first, as systemd sends them to whom asks nothing.
                peer.sendall(message(4, b"", b"") + reply(answer))

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()
        for file in self.files:
            os.close(file)


def message(kind: int, fields: bytes, body: bytes) -> bytes:
    head = struct.pack("<BBBBIII", ord("l"), kind, 0, 1, len(body), 7, len(fields)) + fields
    return head + bytes(-len(head) % 8) + body


def reply(refusal: tuple[str, str] | None) -> bytes:
    if refusal is None:
        return message(2, b"\x05\x01u\0\1\0\0\0", b"")
    name, text = (part.encode() for part in refusal)
    field = b"\x04\x01s\0" + struct.pack("<I", len(name)) + name + b"\0"
    return message(3, b"\x05\x01u\0\1\0\0\0" + field, struct.pack("<I", len(text)) + text + b"\0")


@contextlib.contextmanager
def manager(path: Path, *answers: tuple[str, str] | None) -> Iterator[Manager]:
    made = Manager(path, list(answers))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(systemd, "SOCKET", tmp_path / "private")
    return tmp_path / "private"


def test_a_unit_that_just_ends_is_waited_for(place: Path) -> None:
    ours, theirs = socket.socketpair()
    exists = ("org.freedesktop.systemd1.UnitExists", "Unit vxnet-0123456789ab.service already exists.")
    with ours, theirs, manager(place, exists, None) as found:
        systemd.start_shim("0123456789abcdef", "web", Path("/usr/lib/shim"), theirs.fileno())
        first, second = found.requests
        assert first == second
        assert b"vxnet-0123456789ab.service\0" in first
        assert first.count(b"/usr/lib/shim\0") == 2  # the program, and its first argument
        # What it was given is this very socket.
        assert os.fstat(found.files[1]).st_ino == os.fstat(theirs.fileno()).st_ino


def test_refusals_are_told(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with manager(place, ("org.freedesktop.DBus.Error.AccessDenied", "no")):
            with pytest.raises(HostError, match=r"vxnet-0123456789ab\.service: no") as refused:
                systemd.start_shim("0123456789abcdef", "web", Path("/shim"), theirs.fileno())
            assert "systemctl status" in refused.value.hint
        place.unlink()
        with pytest.raises(HostError, match="No such file"):
            systemd.start_shim("0123456789abcdef", "web", Path("/shim"), theirs.fileno())
