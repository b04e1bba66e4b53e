"""Names that are known, answered by a thread in C: csrc/dnsfast/dnsfast.h has the picture.

Nothing that the daemon does delays these answers, as the thread runs without Python's lock. What it cannot answer comes
out of a socket for each container (:meth:`FastNames.serve`), and is answered by :mod:`vxnet.cluster.dns`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from vxnet.host._dnsfast import ffi, lib
from vxnet.model.errors import HostError

_SET = struct.Struct("=HHHxxI")
"""type, number, stride, size, as in csrc/dnsfast/table.h"""
NICE = -10

Answers = Mapping[int, tuple[int, int, bytes]]
"""By type: how many records, octets of each (0: of no one length), the records (vxnet.core.names.table.RRset)."""


class FastNames:
    """Use as ``with FastNames() as fast``; leaving stops the thread. Raises HostError if it cannot begin."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._control, self._stop = socket.socketpair()
        self._networks: dict[str, int] = {}
        self._numbers: dict[str, tuple[int, socket.socket, socket.socket]] = {}
        """By container: its number, and what the thread uses for it."""
        made = ffi.new("struct dnsfast **")
        error = lib.dnsfast_new(made, self._epoll.fileno(), self._control.fileno(), secrets.randbits(64))
        if error:
            self._close()
            raise HostError(f"cannot serve names: {os.strerror(-error)}")
        self._server = made[0]
        self._thread = threading.Thread(target=self._run, name="names")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.close()
        self._thread.join()
        for container in list(self._numbers):
            self.leave(container)
        lib.dnsfast_free(self._server)
        self._close()

    def _run(self) -> None:
        # Before the daemon's other threads: it takes microseconds, and somebody waits for each.
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
        lib.dnsfast_run(self._server)

    def _close(self) -> None:
        self._stop.close()
        self._control.close()
        self._epoll.close()

    def serve(self, container: str, udp: socket.socket, networks: Sequence[str]) -> socket.socket:
        """Answer on ``udp`` (the caller's, who may go on using it) what these networks know, the first of them first.

        Returns where the other queries come out, one a message: the client's address (4 octets) and port (2, network
        order), then the datagram. The caller closes it.
        """
        self.leave(container)
        mine = udp.dup()
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = lib.dnsfast_add(self._server, mine.fileno(), theirs.fileno(), *self._view(networks))
        if number < 0:
            for one in (mine, theirs, ours):
                one.close()
            raise HostError(f"cannot serve names: {os.strerror(-number)}")
        self._numbers[container] = number, mine, theirs
        ours.setblocking(False)
        return ours

    def update(self, container: str, networks: Sequence[str]) -> None:
        """Its networks are others now. Harmless if it is not served."""
        if container in self._numbers:
            self._check(lib.dnsfast_update(self._server, self._numbers[container][0], *self._view(networks)))

    def leave(self, container: str) -> None:
        """Serve it no more; harmless if it is not served."""
        if container in self._numbers:
            number, mine, theirs = self._numbers.pop(container)
            lib.dnsfast_remove(self._server, number)
            mine.close()
            theirs.close()

    def put(self, network: str, name: bytes, answers: Answers | None) -> None:
        """All answers of a name (wire form, lower case) by type; None: the name is gone."""
        number = self._number(network)
        if answers is None:
            lib.dnsfast_drop(self._server, number, name, len(name))
            return
        packed = b"".join(
            _SET.pack(kind, count, stride, len(body)) + body for kind, (count, stride, body) in answers.items()
        )
        self._check(lib.dnsfast_put(self._server, number, name, len(name), packed, len(packed)))

    def answer(self, networks: Sequence[str], data: bytes, turn: int) -> bytes:
        """What would be sent; empty: it would be passed on. For tests."""
        reply = ffi.new("uint8_t[]", 1232)
        size = lib.dnsfast_answer(self._server, *self._view(networks), data, len(data), turn, reply)
        return bytes(ffi.buffer(reply, size))

    def statistics(self) -> dict[str, int]:
        counts = ffi.new("struct dnsfast_counts *")
        lib.dnsfast_count(self._server, counts)
        names = ("answered", "missed", "lost", "failed")
        return {f"fast_{name}": int(getattr(counts, name)) for name in names}

    def _number(self, network: str) -> int:
        return self._networks.setdefault(network, len(self._networks))

    def _view(self, networks: Sequence[str]) -> tuple[object, int]:
        return ffi.new("uint32_t[]", [self._number(network) for network in networks]), len(networks)

    def _check(self, error: int) -> None:
        if error < 0:
            raise HostError(f"cannot serve names: {os.strerror(-error)}")
