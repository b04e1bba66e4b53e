"""Shows commands on the hosts of a lab as a person would see them, and checks what comes back."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from vxnet.lab.machine import Lab

_ANSWER_S: Final = 30.0
_LOOK_S: Final = 10.0
"""What gossip and slow starters may take until a look shows what it should."""
_LINES: Final = 14
"""More of an answer are left out in the middle."""
_PROMPT: Final = "# "


class WrongError(Exception):
    """What came back is not what should have."""


class Stage:
    def __init__(self) -> None:
        self._colours = (
            sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
        )
        self._chapters = 0

    def chapter(self, title: str) -> None:
        self._chapters += 1
        self._print("\n" + self._coloured("1;36", f"{self._chapters}. {title}") + "\n")

    def say(self, text: str) -> None:
        self._print(text)

    def typed_here(self, command: str) -> None:
        """Stands for what the demo does itself."""
        self._print(self._coloured("1", f"# {command}"))

    def fail(self, reason: str) -> None:
        self._print("\n" + self._coloured("1;31", "It did not hold: ") + reason)

    def quote(self, whose: str, lines: Sequence[str]) -> None:
        self._print("\n" + self._coloured("1", f"last lines of {whose}:"))
        for line in lines:
            self._print(f"    {line}")

    def type(self, lab: Lab, host: str, command: str, *expected: str, refused: bool = False) -> str:
        """Runs a shell command once. ``expected``: patterns that its output must hold, stderr included."""
        self._prompt(host, command)
        status, output = _run(lab, host, command)
        self._answer(output)
        if wrong := _wrong(status, output, expected, refused=refused):
            raise WrongError(f"`{command}` on {host}: {wrong}")
        return output

    def look(self, lab: Lab, host: str, command: str, *expected: str, shown: bool = True) -> str:
        """Runs it again until it is as expected, and shows only that."""
        if shown:
            self._prompt(host, command)
        deadline = time.monotonic() + _LOOK_S
        while True:
            status, output = _run(lab, host, command)
            wrong = _wrong(status, output, expected, refused=False)
            if not wrong or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if shown or wrong:
            self._answer(output)
        if wrong:
            raise WrongError(f"`{command}` on {host}, also after {_LOOK_S:g} s: {wrong}")
        return output

    def converse(self, lab: Lab, host: str, command: str, *lines: tuple[str, str]) -> None:
        """Runs a shell with a terminal and types ``lines``: each a command and what its output must hold."""
        self._prompt(host, command)
        ours, theirs = pty.openpty()
        # The terminal must be its session's own, or Ctrl-C and job control mean nothing in it.
        argv = ["setsid", "--ctty", "sh", "-c", f"exec {command}"]
        try:
            with lab.popen(host, argv, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "dumb"}) as child:
                os.close(theirs)
                try:
                    self._hear(ours)
                    for line, expected in lines:
                        os.write(ours, f"{line}\n".encode())
                        self._print(f"    {self._coloured('1', _PROMPT + line)}")
                        heard = self._hear(ours).partition("\n")[2]
                        self._answer(heard, indent="    ")
                        if not re.search(expected, heard):
                            raise WrongError(f"`{line}` in the container said {heard!r}")
                    os.write(ours, b"exit\n")
                    self._print(f"    {self._coloured('1', _PROMPT + 'exit')}")
                    if child.wait(_ANSWER_S) != 0:
                        raise WrongError(f"`{command}` on {host} ended with status {child.returncode}")
                except BaseException:
                    child.kill()
                    raise
        except subprocess.TimeoutExpired:
            raise WrongError(f"`{command}` on {host} did not end") from None
        finally:
            os.close(ours)

    def _hear(self, terminal: int) -> str:
        """All until the next prompt."""
        heard = ""
        deadline = time.monotonic() + _ANSWER_S
        while not heard.endswith(_PROMPT):
            if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise WrongError(f"no prompt came, only {heard!r}")
            try:
                heard += os.read(terminal, 65536).decode(errors="replace").replace("\r", "")
            except OSError:  # EIO: the program has ended
                raise WrongError(f"it ended, and had said {heard!r}") from None
        return heard.removesuffix(_PROMPT)

    def _prompt(self, host: str, command: str) -> None:
        self._print(self._coloured("1;32", f"{host}# ") + self._coloured("1", command))

    def _answer(self, output: str, indent: str = "") -> None:
        lines = output.rstrip().splitlines()
        if len(lines) > _LINES:
            lines = [*lines[: _LINES - 3], "…", *lines[-2:]]
        for line in lines:
            self._print(indent + line)

    def _coloured(self, code: str, text: str) -> str:
        """``code``: ECMA-48 SGR parameters."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

    def _print(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _run(lab: Lab, host: str, command: str) -> tuple[int, str]:
    try:
        done = lab.run(host, ["sh", "-c", command], stderr=subprocess.STDOUT, timeout_s=_ANSWER_S)
    except subprocess.TimeoutExpired:
        raise WrongError(f"`{command}` on {host} took longer than {_ANSWER_S:g} s") from None
    return done.returncode, done.stdout


def _wrong(status: int, output: str, expected: Sequence[str], *, refused: bool) -> str:
    """What is wrong with an answer; empty if nothing."""
    if (status != 0) is not refused:
        return f"its status is {status}"
    missing = [pattern for pattern in expected if not re.search(pattern, output, re.MULTILINE)]
    return f"expected {' and '.join(missing)}" if missing else ""
