"""Netlink, packed: messages as bytes, many in one send, dumps that the kernel filters.

A library (pyroute2) takes 200 µs for a message, a packed one 3 µs with the kernel's work, and a host has tens of
thousands of FDB rows and thousands of links. So the transport and the tables are packed here and in the modules beside
it.

Format: netlink(7), rtnetlink(7), Documentation/userspace-api/netlink/intro.rst of the kernel. All integers are the
host's, all attributes padded to 4 octets.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from vxnet.host import netns

S = TypeVar("S")

HEADER = struct.Struct("=IHHII")
"""length, type, flags, sequence, port"""
ATTRIBUTE = struct.Struct("=HH")

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_ACK_TLVS = 0x200
NLM_F_CAPPED = 0x100

NLA_F_NESTED = 0x8000
_NLA_TYPE = 0x3FFF

NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SOL_NETLINK = 270
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

BATCH_OCTETS = 65536
"""One send: 3 to 4 ms of the kernel's work for FDB rows. Larger ones gain nothing."""
BUFFER_OCTETS = 4 << 20
DUMP_ATTEMPTS = 5

Failure = tuple[int, str]
"""errno and the kernel's words."""


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length & 3)


def attribute_u32(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Type → value of the attributes from ``offset`` on; of several of one type the last."""
    found = {}
    end = len(data) - 3
    while offset < end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One request; the transport writes its sequence number."""
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


class Netlink:
    """A netlink socket of one namespace. Usable from any thread, by one at a time."""

    def __init__(self, namespace: int | None = None, protocol: int = socket.NETLINK_ROUTE) -> None:
        """``namespace``: a descriptor; None: the calling thread's. Raises OSError."""
        self._socket = netns.netlink_socket(namespace, protocol)
        self._sequence = 0
        try:
            for option, size in ((SO_RCVBUFFORCE, BUFFER_OCTETS), (SO_SNDBUFFORCE, BUFFER_OCTETS)):
                self._socket.setsockopt(socket.SOL_SOCKET, option, size)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def batch(self, messages: Sequence[bytes]) -> dict[int, Failure]:
        """Send all, each on its own merits; index → failure of those that the kernel refused.

        No message asks for an acknowledgement (a thousand of them overrun the buffer although everything was done);
        refusals come by themselves, and the answer to an empty request at the end says that there are no more.
        """
        failures: dict[int, Failure] = {}
        start = 0
        while start < len(messages):
            chunk: list[bytes] = []
            size = 0
            while start + len(chunk) < len(messages):
                one = messages[start + len(chunk)]
                if chunk and size + len(one) > BATCH_OCTETS:
                    break
                chunk.append(one)
                size += (len(one) + 3) & ~3
            self._send(chunk, failures, start)
            start += len(chunk)
        return failures

    def _send(self, chunk: list[bytes], failures: dict[int, Failure], offset: int) -> None:
        first = self.reserve(len(chunk))
        barrier = self.reserve(1)
        packed = bytearray()
        for sequence, one in enumerate(chunk, first):
            at = len(packed)
            packed += one
            packed += b"\0" * (-len(one) & 3)
            struct.pack_into("=I", packed, at + 8, sequence)
        packed += _barrier(barrier)
        self._socket.send(packed)
        self._wait(barrier, first, len(chunk), failures, offset)

    def _wait(self, barrier: int, first: int, count: int, failures: dict[int, Failure], offset: int) -> None:
        """Until the kernel has answered the barrier, which it does last."""
        while True:
            for kind, flags, sequence, body in split(self._socket.recv(BATCH_OCTETS)):
                if kind != NLMSG_ERROR:
                    continue
                if sequence == barrier:
                    return
                failure = _failure(flags, body)
                if failure is not None and first <= sequence < first + count:
                    failures[offset + sequence - first] = failure

    def batch_numbered(self, block: bytearray, stride: int, first: int) -> dict[int, Failure]:
        """The same for messages of ``stride`` octets each, packed already, with sequence numbers from ``first`` on
        (:meth:`reserve`)."""
        failures: dict[int, Failure] = {}
        step = BATCH_OCTETS // stride * stride
        for at in range(0, len(block), step):
            barrier = self.reserve(1)
            chunk = block[at : at + step] + _barrier(barrier)
            self._socket.send(chunk)
            self._wait(barrier, first, len(block) // stride, failures, 0)
        return failures

    def reserve(self, count: int) -> int:
        """The first of so many sequence numbers that nobody else gets."""
        self._sequence += count
        return self._sequence - count + 1

    def transaction(self, messages: Sequence[bytes]) -> Failure | None:
        """Send in one datagram what takes effect as a whole or not at all (nfnetlink's batches: the first message opens
        it, the last closes it); the first refusal."""
        first = self.reserve(len(messages))
        packed = bytearray()
        for sequence, one in enumerate(messages, first):
            at = len(packed)
            packed += one
            packed += b"\0" * (-len(one) & 3)
            struct.pack_into("=I", packed, at + 8, sequence)
        # The last one but the closing is acknowledged, after all refusals have been told.
        acknowledged = len(packed) - ((len(messages[-1]) + 3) & ~3) - ((len(messages[-2]) + 3) & ~3)
        (flags,) = struct.unpack_from("=H", packed, acknowledged + 6)
        struct.pack_into("=H", packed, acknowledged + 6, flags | NLM_F_ACK)
        self._socket.send(packed)
        refused: Failure | None = None
        while True:
            for kind, flags, sequence, body in split(self._socket.recv(BATCH_OCTETS)):
                if kind != NLMSG_ERROR or not first <= sequence <= self._sequence:
                    continue
                refused = refused or _failure(flags, body)
                # A transaction that could not even begin is answered once.
                if sequence == self._sequence - 1 or (sequence == first and refused is not None):
                    return refused

    def request(self, one: bytes) -> None:
        """Send one and raise OSError with the kernel's words if it was refused."""
        failure = self.batch([one]).get(0)
        if failure is not None:
            raise OSError(*failure)

    def ask(self, messages: Sequence[bytes]) -> list[bytes | None]:
        """Send questions that have one answer each; the bodies in order, None where the kernel refused."""
        answers: list[bytes | None] = []
        for one in messages:
            self._sequence += 1
            packed = bytearray(one)
            struct.pack_into("=I", packed, 8, self._sequence)
            self._socket.send(packed)
            answers.append(self._answer(self._sequence))
        return answers

    def _answer(self, wanted: int) -> bytes | None:
        while True:
            for kind, _flags, sequence, body in split(self._socket.recv(BATCH_OCTETS)):
                if sequence == wanted:
                    return None if kind == NLMSG_ERROR else body

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Bodies of all answers to one dump request; none if what it is about is not there. Raises OSError.

        A dump that the kernel marks as torn (something changed meanwhile) is asked for again; after a few times it is
        taken as it is, as the next look will see the rest.
        """
        return self.dump_whole(kind, body, lambda data: None)[1]

    def dump_whole(self, kind: int, body: bytes, whole: Callable[[bytes], S | None]) -> tuple[list[S], list[bytes]]:
        """The same, with what ``whole`` makes of datagrams that it can take as a whole (answers and nothing else), and
        the bodies of the answers in the others."""
        for _ in range(DUMP_ATTEMPTS):
            taken, bodies, torn = self._dump(kind, body, whole)
            if not torn:
                break
        return taken, bodies

    def _dump(self, kind: int, body: bytes, whole: Callable[[bytes], S | None]) -> tuple[list[S], list[bytes], bool]:
        wanted = self.reserve(1)
        request = HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, wanted, 0)
        self._socket.send(request + body)
        taken: list[S] = []
        bodies: list[bytes] = []
        torn = False
        while True:
            data = self._socket.recv(BATCH_OCTETS)
            _length, answer, flags, sequence, _port = HEADER.unpack_from(data)
            # The mark is on what comes first behind the change, and seldom on the end.
            torn = torn or (sequence == wanted and bool(flags & NLM_F_DUMP_INTR))
            if answer > NLMSG_DONE and sequence == wanted and (one := whole(data)) is not None:
                taken.append(one)
                continue
            offset = 0
            while offset < len(data):  # written out instead of split(): it runs for every answer of every dump
                length, answer, flags, sequence, _port = HEADER.unpack_from(data, offset)
                content = data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
                if sequence != wanted:
                    continue
                if answer > NLMSG_DONE:
                    bodies.append(content)
                    continue
                failure = _failure(flags, content) if answer == NLMSG_ERROR else _end(flags, content)
                if failure is not None:
                    raise OSError(*failure)
                return taken, bodies, torn or bool(flags & NLM_F_DUMP_INTR)


def _barrier(sequence: int) -> bytes:
    return HEADER.pack(HEADER.size, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """type, flags, sequence, body of each message in a datagram."""
    offset = 0
    while offset < len(data):
        length, kind, flags, sequence, _port = HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


NLMSGERR_ATTR_MSG = 1


def _failure(flags: int, body: bytes) -> Failure | None:
    """Of NLMSG_ERROR; None: it is an acknowledgement."""
    # With NETLINK_CAP_ACK the refused message is cut to its header, and the kernel's words follow.
    cut = flags & NLM_F_CAPPED or not flags & NLM_F_ACK_TLVS
    return _said(flags, body, 4 + (HEADER.size if cut else (HEADER.unpack_from(body, 4)[0] + 3) & ~3))


def _end(flags: int, body: bytes) -> Failure | None:
    """Of NLMSG_DONE, in which a dump's failure comes; None: it is whole, or what was asked about is not there."""
    failure = _said(flags, body, 4)
    return None if failure is None or failure[0] in GONE else failure


def _said(flags: int, body: bytes, words_at: int) -> Failure | None:
    (number,) = struct.unpack_from("=i", body)
    if number == 0:
        return None
    words = os.strerror(-number)
    if flags & NLM_F_ACK_TLVS and (said := attributes(body, words_at).get(NLMSGERR_ATTR_MSG)):
        words = f"{words}: {said.rstrip(bytes(1)).decode(errors='replace')}"
    return -number, words


GONE = frozenset((errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL))
"""What the kernel answers to the deletion of something that is not there (ESRCH: of a route), or to a question about
it."""


FORGOTTEN_S = 0.05
"""From a transaction to the end of what it deleted, on a host with work to do: an RCU grace period and a worker."""


class Closer:
    """Closes sockets of nftables a little later and beside the work: a close at once waits until what the last
    transaction deleted is gone, some 15 ms, and holds up the next transaction."""

    def __init__(self) -> None:
        self._sockets: list[Netlink] = []
        self._threads: list[threading.Thread] = []
        self._end = threading.Event()

    def take(self, one: Netlink) -> None:
        self._sockets.append(one)

    def begin(self) -> None:
        """Close what has been taken."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if self._sockets:
            sockets, self._sockets = self._sockets, []
            thread = threading.Thread(target=self._close, args=(sockets,), name="closer")
            try:
                thread.start()
            except RuntimeError:  # there can be none
                self._close(sockets)
            else:
                self._threads.append(thread)

    def _close(self, sockets: Iterable[Netlink]) -> None:
        self._end.wait(FORGOTTEN_S)
        for one in sockets:
            one.close()

    def wait(self) -> None:
        """Until all are closed, which is no later than now."""
        self._end.set()
        for thread in self._threads:
            thread.join()
