"""A container's standard streams on this process's own: ``run``, ``attach`` and ``exec`` of the command line.

::

     standard input  ──> stdin pipe or terminal ──> command ──> pipe ──> shim ──> log
                                                                          └─────> pipe ──> standard output, error
     SIGWINCH        ──> the terminal's size                     (exec: no shim and no log in between)

Speaks to the shim itself (csrc/shim/protocol.h), so that a session outlives the daemon. Blocks: this is the command's
main loop. Only the standard library, for the command line starts in a moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterable, Sequence
from types import FrameType, TracebackType

from vxnet.model import shim as protocol
from vxnet.model.errors import CallerError, HostError, NotFoundError, UnavailableError
from vxnet.model.shim import Kind, Message

DETACH_KEYS = "ctrl-p,ctrl-q"
ANSWER_TIMEOUT_S = 30.0
_CHUNK = 65536
_PROXIED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def attach(
    socket_path: str,
    *,
    stdin: bool = True,
    sig_proxy: bool = True,
    detach_keys: str = DETACH_KEYS,
    start: Callable[[], object] | None = None,
) -> int | None:
    """This process's streams on those of a container's command; its exit status, or None after the detach keys.

    ``start`` is called once attached, so that of a command which it starts nothing is lost; standard input then ends
    with this process's (``run -i``), else it stays open for the next who attaches. Without a terminal signals go to
    the command (``sig_proxy``), else they end this process. Raises :class:`NotFoundError` when the container does not
    run, and what ``start`` raises.
    """
    keys = parse_keys(detach_keys)
    with _Session(socket_path, keys) as session:
        output, errors = session.output(1), session.output(2)
        fields = [("stdin", "keep" if start is None else "once")] if stdin else []
        try:
            answer, descriptors = session.ask(Kind.ATTACH, fields, (output, errors))
        finally:
            os.close(output)
            os.close(errors)
        session.tag = 0
        if answer.fields["terminal"] == "1":
            session.take_terminal(descriptors[0], stdin and answer.fields["stdin"] == "1", redraw=start is None)
        else:
            session.take_input(descriptors[0] if descriptors else -1)
            if sig_proxy:
                session.pass_signals()
        if start is not None:
            start()
        return session.relay(until_closed=True)


def execute(
    socket_path: str,
    argv: Sequence[str],
    *,
    env: Iterable[str] = (),
    workdir: str = "",
    user: str = "",
    terminal: bool = False,
    stdin: bool = False,
    detach: bool = False,
) -> int:
    """Runs a command in the container on this process's streams: its exit status; 126 or 127, with a line on standard
    error, when it cannot be run. With ``detach`` on none, and 0 as soon as it runs. Raises :class:`NotFoundError` when
    the container does not run.
    """
    fields = [("arg", one) for one in argv]
    if terminal:
        fields += [("terminal", "1"), ("env", f"TERM={os.environ.get('TERM', 'xterm')}")]
    fields += [("env", one) for one in env]  # of one name the last counts
    if workdir:
        fields.append(("workdir", workdir))
    if user:
        fields.append(("user", user))
    with _Session(socket_path, b"") as session:
        given: list[int] = []
        feed = -1
        if detach:
            given = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
        elif not terminal:
            source = os.open(os.devnull, os.O_RDONLY)
            if stdin:
                os.close(source)
                source, feed = os.pipe()
            given = [source, session.output(1), session.output(2)]
        try:
            answer, descriptors = session.ask(Kind.EXEC, fields, given, refusals=True)
        finally:
            for descriptor in given:
                os.close(descriptor)
        if answer.kind == Kind.ERROR:
            sys.stderr.write(f"vxnet: {answer.fields.get('message', 'the command cannot be run')}\n")
            return int(answer.fields.get("status", protocol.FAILED))
        if detach:
            return 0
        session.tag = answer.tag
        if terminal:
            session.take_terminal(descriptors[0], stdin, redraw=False, read=True)
        else:
            session.take_input(feed)
        status = session.relay(until_closed=False)
        assert status is not None, "no keys leave an exec"
        return status


def parse_keys(text: str) -> bytes:
    """Docker's notation, ``ctrl-p,ctrl-q`` or letters; empty: none. Raises :class:`CallerError`."""
    keys = bytearray()
    for key in text.split(",") if text else ():
        letter = key.removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii() or (letter != key and not "@" <= letter.upper() <= "_"):
            raise CallerError(f'"{key}" is no detach key', hint="write letters and ctrl-LETTER with commas between")
        keys.append(ord(letter) if letter == key else ord(letter.upper()) & 0x1F)
    return bytes(keys)


class KeyWatch:
    """Finds a sequence of keys in what is typed, also when it comes in pieces."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What is to be passed on, and whether the sequence is complete. The beginning of one is held back."""
        if not self._keys:
            return typed, False
        typed = self._held + typed
        before, found, _ = typed.partition(self._keys)
        if found:
            self._held = b""
            return before, True
        for length in range(min(len(self._keys) - 1, len(typed)), 0, -1):
            if self._keys.startswith(typed[-length:]):
                self._held = typed[-length:]
                return typed[:-length], False
        self._held = b""
        return typed, False


class _Session:
    """A connection to a shim and the descriptors around it. Leaving it puts terminal and signals back as they were."""

    tag: int
    """Whose EXIT ends the session."""

    def __init__(self, socket_path: str, detach_keys: bytes) -> None:
        self._cleanup = contextlib.ExitStack()
        self._connection = self._cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self._selector = self._cleanup.enter_context(selectors.PollSelector())  # takes regular files too
        self._outputs: dict[int, int] = {}
        """Descriptor that is read -> the one that is written."""
        self._keys = KeyWatch(detach_keys)
        self._sink = -1
        """Where what is typed goes."""
        self._pending = b""
        self._master = -1
        try:
            self._connection.settimeout(ANSWER_TIMEOUT_S)
            self._connection.connect(socket_path)
        except (FileNotFoundError, ConnectionRefusedError):
            self._cleanup.close()
            raise NotFoundError("the container is not running", hint="`vxnet ps -a` shows how it ended") from None
        except OSError as error:
            self._cleanup.close()
            raise HostError(f"cannot reach the container's shim at {socket_path}: {error.strerror}") from None

    def __enter__(self) -> _Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in {*self._outputs, self._sink, self._master} - {-1}:
            os.close(descriptor)
        self._cleanup.close()

    # Setting up

    def output(self, target: int) -> int:
        """A pipe onto ``target``; returns the end to hand out and close."""
        read, write = os.pipe()
        self._read(read, target)
        return write

    def ask(
        self, kind: Kind, fields: Iterable[tuple[str, str]], descriptors: Sequence[int], *, refusals: bool = False
    ) -> tuple[Message, list[int]]:
        """The answer. Raises what the shim refuses with, unless it is about the command and ``refusals`` are wanted."""
        try:
            socket.send_fds(self._connection, [protocol.encode(kind, 1, fields)], descriptors)
            packet, received, _, _ = socket.recv_fds(self._connection, 8192, protocol.FDS_MAX)
        except ConnectionError:
            packet = b""
        except OSError as error:
            raise UnavailableError(f"the container's shim does not answer: {error}") from None
        if not packet:
            raise NotFoundError("the container has just ended")
        answer = protocol.decode(packet)
        about_command = answer.fields.get("status") in (str(protocol.NOT_EXECUTABLE), str(protocol.NOT_FOUND))
        if answer.kind == Kind.ERROR and not (refusals and about_command):
            raise protocol.refusal(answer.fields)
        return answer, received

    def take_input(self, sink: int) -> None:
        """Passes standard input on to ``sink`` (-1: none), and its end."""
        self._sink = sink
        if sink >= 0:
            os.set_blocking(sink, False)
            self._selector.register(0, selectors.EVENT_READ)

    def take_terminal(self, master: int, typed: bool, *, redraw: bool, read: bool = False) -> None:
        """Our terminal becomes that one's window. ``read``: its output comes from it (else by a pipe)."""
        self._master = master
        os.set_blocking(master, False)
        self._resize(redraw)
        self._handle(signal.SIGWINCH, lambda: self._resize(False))
        if read:
            self._read(os.dup(master), 1)
        if not typed:
            return
        self.take_input(os.dup(master))
        if os.isatty(0):
            before = termios.tcgetattr(0)
            self._cleanup.callback(termios.tcsetattr, 0, termios.TCSANOW, before)
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._handle(number, lambda number=number: sys.exit(128 + number))  # type: ignore[misc]
            tty.setraw(0, termios.TCSANOW)  # what was typed ahead stays

    def pass_signals(self) -> None:
        for number in _PROXIED:
            self._handle(number, lambda number=number: self._signal(number))  # type: ignore[misc]

    def _handle(self, number: signal.Signals, action: Callable[[], object]) -> None:
        def handler(_number: int, _frame: FrameType | None) -> None:
            action()

        self._cleanup.callback(signal.signal, number, signal.signal(number, handler))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(protocol.encode(Kind.SIGNAL, 2, [("signal", str(int(number)))]))

    def _resize(self, redraw: bool) -> None:
        for own in (0, 1, 2):
            try:
                columns, rows = os.get_terminal_size(own)
                break
            except OSError:
                continue
        else:
            return
        # Programs draw anew when the size changes, and only then.
        for height in (rows + 1, rows) if redraw else (rows,):
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, columns, 0, 0))

    def _read(self, descriptor: int, target: int) -> None:
        os.set_blocking(descriptor, False)
        self._outputs[descriptor] = target
        self._selector.register(descriptor, selectors.EVENT_READ)

    # Running

    def relay(self, *, until_closed: bool) -> int | None:
        """Until EXIT and the output's end: it closes, or (a child of an exec may hold it open) none of it is left.
        None: the detach keys came first.
        """
        status: int | None = None
        self._connection.setblocking(False)
        self._selector.register(self._connection, selectors.EVENT_READ)
        while status is None or (until_closed and self._outputs):
            for key, _ in self._selector.select():
                if key.fileobj is self._connection:
                    status = self._hear(status)
                elif key.fd in self._outputs:
                    self._pump(key.fd)
                elif key.fd == 0 and self._type():
                    return None
                elif key.fd == self._sink:
                    self._push()
        for descriptor in tuple(self._outputs):
            while self._pump(descriptor):
                pass
        return status

    def _hear(self, status: int | None) -> int | None:
        """The exit status, once it is told."""
        try:
            packet = self._connection.recv(8192)
        except BlockingIOError:
            return status
        except ConnectionError:
            packet = b""
        if not packet:
            self._selector.unregister(self._connection)
            if status is None:
                raise UnavailableError("the container's shim was killed, and the container with it")
            return status
        message = protocol.decode(packet)
        if message.kind == Kind.EXIT and message.tag == self.tag:
            return int(message.fields["status"])
        return status

    def _pump(self, descriptor: int) -> bool:
        """One read passed on; False when nothing is there, or will be."""
        target = self._outputs.get(descriptor)
        if target is None:
            return False
        try:
            data = os.read(descriptor, _CHUNK)
            _write(target, memoryview(data))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):  # the terminal hung up; nobody reads us
                raise
            data = b""
        if not data:
            self._selector.unregister(descriptor)
            del self._outputs[descriptor]
            os.close(descriptor)
        return bool(data)

    def _type(self) -> bool:
        """Standard input has something; True after the detach keys."""
        try:
            typed = os.read(0, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            typed = b""
        if not typed:
            self._selector.unregister(0)
            self._close_sink()
            return False
        passed, detach = self._keys.feed(typed) if self._master >= 0 else (typed, False)
        self._pending += passed
        self._push()
        return detach

    def _push(self) -> None:
        """What was typed goes on as far as it is taken; meanwhile no more is read."""
        waited = 0 not in self._selector.get_map()
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._sink, self._pending) :]
        except BlockingIOError:
            if not waited:
                self._selector.unregister(0)
                self._selector.register(self._sink, selectors.EVENT_WRITE)
            return
        except OSError:  # the command closed its standard input, or the terminal hung up
            if waited:
                self._selector.unregister(self._sink)
            else:
                self._selector.unregister(0)
            self._close_sink()
            return
        if waited:
            self._selector.unregister(self._sink)
            self._selector.register(0, selectors.EVENT_READ)

    def _close_sink(self) -> None:
        os.close(self._sink)
        self._sink = -1
        self._pending = b""


def _write(target: int, data: memoryview) -> None:
    """All of it, waiting also where somebody made our standard output non-blocking."""
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:
            with selectors.PollSelector() as selector:
                selector.register(target, selectors.EVENT_WRITE)
                selector.select()
