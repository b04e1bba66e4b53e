"""HTTP/1.1 over a unix socket, as much of it as a client of our own server needs (RFC 9112).

One connection a request, bodies by length or in chunks. ``http.client`` does the same, but importing it takes 30 ms (it
brings in ``email`` and ``ssl``), a third of what the whole of ``vxnet ps`` may take.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

_LINE_LIMIT: Final = 8192
_HEADER_LIMIT: Final = 100
_READ_SIZE: Final = 65536
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
"""RFC 3986, 2.3."""


class BrokenAnswerError(Exception):
    """The answer ended before its end mark, or is no HTTP."""


def quote(text: str) -> str:
    """``text`` as one segment of a path or one value of a query."""
    return "".join(chr(octet) if octet in _UNRESERVED else f"%{octet:02X}" for octet in text.encode())


Writer = Callable[[Callable[[bytes], None]], None]
"""A body of unknown length: called with what takes its pieces."""


class Exchange:
    """One request and its answer.

    ``timeout_s`` bounds each wait for the server, not the whole; None waits for ever. Raises :class:`OSError` when the
    server cannot be reached (:class:`TimeoutError`: is silent), :class:`BrokenAnswerError` when it answers nonsense.
    """

    def __init__(
        self, socket_path: str, method: str, target: str, body: bytes | Writer | None, timeout_s: float | None
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._file = self._socket.makefile("rb")
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(socket_path)
            if callable(body):
                self._send_chunks(method, target, body)
            else:
                self._socket.sendall(_request(method, target, body))
            self.status = self._read_status()
            self.headers = self._read_headers()
            """Names in lower case."""
        except BaseException:
            self._close()
            raise

    def _send_chunks(self, method: str, target: str, body: Writer) -> None:
        def chunk(data: bytes) -> None:
            if data:
                self._socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

        head = (f"{method} {target} HTTP/1.1", "Host: vxnet", "Connection: close", "Transfer-Encoding: chunked", "", "")
        # A server that refuses need not read on to the end: what it says is there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall("\r\n".join(head).encode("ascii"))
            body(chunk)
            self._socket.sendall(b"0\r\n\r\n")

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._socket.close()

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The body's octets as they come in."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunked()
        elif self.status != 204:
            yield from self._exactly(_number(self.headers.get("content-length", "0"), 10))

    def _chunked(self) -> Iterator[bytes]:
        while size := _number(self._line().partition(";")[0], 16):
            yield from self._exactly(size)
            self._end_of_chunk()
        self._end_of_chunk()  # vxnet's servers send no trailers

    def _end_of_chunk(self) -> None:
        if found := self._line():
            raise BrokenAnswerError(f"expected the end of a chunk, found {found!r}")

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            # read1: what has come so far, so that a line of a log is shown when it is written
            data = self._file.read1(min(size, _READ_SIZE))
            if not data:
                raise BrokenAnswerError(f"the answer ended {size} octets too early")
            size -= len(data)
            yield data

    def _line(self) -> str:
        line = self._file.readline(_LINE_LIMIT)
        if not line.endswith(b"\r\n"):
            raise BrokenAnswerError(
                "the answer ended within a line" if len(line) < _LINE_LIMIT else "a line is too long"
            )
        return line[:-2].decode("latin-1")

    def _read_status(self) -> int:
        version, _, rest = self._line().partition(" ")
        if not version.startswith("HTTP/1."):
            raise BrokenAnswerError(f"expected HTTP/1.1, found {version[:20]!r}")
        return _number(rest[:3], 10)

    def _read_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(_HEADER_LIMIT):
            line = self._line()
            if not line:
                return headers
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        raise BrokenAnswerError(f"more than {_HEADER_LIMIT} header lines")


def _request(method: str, target: str, body: bytes | None) -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: vxnet", "Connection: close"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    elif method == "POST":
        head.append("Content-Length: 0")
    return "\r\n".join([*head, "", ""]).encode("ascii") + (body or b"")


def _number(text: str, base: int) -> int:
    digits = text.strip()
    # int() alone also takes signs, underscores and other scripts' digits
    if not digits or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise BrokenAnswerError(f"expected a number, found {text[:20]!r}")
    try:
        return int(digits, base)
    except ValueError:
        raise BrokenAnswerError(f"expected a number, found {text[:20]!r}") from None
