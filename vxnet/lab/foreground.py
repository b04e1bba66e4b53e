"""Waits for a command on a host as a shell waits for its job: it has the terminal, and signals reach it.

On a terminal the command is a process group of its own, as its pid namespace does not know ours: a shell on the host
could not give the terminal back to it. In a pipeline it stays in ours, where the pager at the end is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

Handler = Callable[[int, FrameType | None], None] | signal.Handlers

_TERMINAL = 0


class Start(Protocol):
    def __call__(self, *, process_group: int | None) -> subprocess.Popen[bytes]: ...


def wait_for(start: Start) -> int:
    """Starts the command and returns its exit status; 128 + N when signal N ended it."""
    if _has_terminal():
        child = start(process_group=0)
        with _handlers(dict.fromkeys((signal.SIGTERM, signal.SIGHUP), _hand_on(child))):
            status = _wait_as_job(child)
    else:
        child = start(process_group=None)
        ignored: dict[signal.Signals, Handler] = dict.fromkeys((signal.SIGINT, signal.SIGQUIT), signal.SIG_IGN)
        with _handlers({**ignored, **dict.fromkeys((signal.SIGTERM, signal.SIGHUP), _hand_on(child))}):
            status = child.wait()
    return status if status >= 0 else 128 - status


def _has_terminal() -> bool:
    if not (os.isatty(0) and os.isatty(1)):
        return False
    try:
        return os.tcgetpgrp(_TERMINAL) == os.getpgrp()
    except OSError:  # somebody else's
        return False


def _wait_as_job(child: subprocess.Popen[bytes]) -> int:
    with _handlers({signal.SIGTTOU: signal.SIG_IGN}):  # or handing over the terminal from behind would stop us
        try:
            while True:
                _give_terminal(child.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGCONT)
                status = os.waitpid(child.pid, os.WUNTRACED)[1]
                if not os.WIFSTOPPED(status):
                    child.returncode = os.waitstatus_to_exitcode(status)
                    return child.returncode
                if os.WSTOPSIG(status) in (signal.SIGTTIN, signal.SIGTTOU):
                    continue  # it was quicker than the terminal's handing over
                _give_terminal(os.getpgrp())
                os.killpg(0, signal.SIGSTOP)  # Ctrl-Z: stop as a whole, until the user's shell goes on with us
        finally:
            _give_terminal(os.getpgrp())


def _give_terminal(group: int) -> None:
    with contextlib.suppress(OSError):  # the terminal was hung up, or the group has ended
        os.tcsetpgrp(_TERMINAL, group)


def _hand_on(child: subprocess.Popen[bytes]) -> Handler:
    """What is sent to this process alone is meant for the command."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)

    return hand_on


@contextlib.contextmanager
def _handlers(wanted: dict[signal.Signals, Handler]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
