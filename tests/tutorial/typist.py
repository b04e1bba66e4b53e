"""Types a page of ``console`` blocks on hosts. What the page prints must come back."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from typing import Protocol

import pytest

from tests.tutorial.console import Step, filled, matches, steps

# These are typed once. Everything else only looks, and may be looked at until gossip has told everybody.
CHANGES = re.compile(
    r"vxnet (init|join|leave|run|rm|stop|kill|network (create|rm|connect|disconnect)|service (create|scale|update|rm))"
    r"\b"
)


class On(Protocol):
    """The argument vector that has ``command`` run by a shell on ``host``, there with a ``terminal`` or without."""

    def __call__(self, host: str, command: str, *, terminal: bool) -> list[str]: ...


class Typist:
    """``patience_s``: how long is looked again, and waited for one answer. A host that is back is met again within
    30 s."""

    def __init__(self, on: On, patience_s: float = 30.0) -> None:
        self._on = on
        self._patience_s = patience_s

    def type(self, page: str) -> None:
        printed = ""
        for step in steps(page):
            command = filled(step.command.text, printed)
            if step.inside:
                self._converse(step, command)
            else:
                printed += self._answer(step, command)

    def _answer(self, step: Step, command: str) -> str:
        deadline = time.monotonic() + self._patience_s
        while True:
            run = subprocess.run(
                self._on(step.host, command, terminal=False),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=self._patience_s,
                check=False,
            )
            # A refusal is one line of vxnet's, and a status.
            refused = any(line.startswith("vxnet: ") for line in step.command.expected)
            if matches(step.command.expected, run.stdout) and (run.returncode != 0) is refused:
                return run.stdout
            if CHANGES.search(command) or time.monotonic() > deadline:
                shown = "\n".join(step.command.expected)
                pytest.fail(f"{step}\n--- expected\n{shown}\n--- came (status {run.returncode})\n{run.stdout}")
            time.sleep(0.1)

    def _converse(self, step: Step, command: str) -> None:
        """Type ``step.inside`` into ``command``, which has a terminal, one line after each prompt."""
        pid, terminal = pty.fork()
        if pid == 0:
            argv = self._on(step.host, command, terminal=True)
            os.execvp(argv[0], argv)
        heard = ""
        ended = False

        def read_until_prompt() -> str:
            nonlocal heard, ended
            deadline = time.monotonic() + self._patience_s
            while not heard.endswith("# ") and not ended:
                readable, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
                assert readable, f"{step}: no prompt after {self._patience_s:g} s, only {heard!r}"
                data = b""
                with contextlib.suppress(OSError):  # EIO: the other side is closed
                    data = os.read(terminal, 65536)
                heard += data.decode(errors="replace")
                ended = not data
            said, heard = heard.removesuffix("# "), ""
            return said

        try:
            banner = read_until_prompt()
            assert matches(step.command.expected, banner), f"{step}: before the first prompt came {banner!r}"
            for typed in step.inside:
                os.write(terminal, typed.text.encode() + b"\n")
                echoed, _, came = read_until_prompt().partition("\n")
                assert echoed.strip() == typed.text, f"{step}: the terminal echoed {echoed!r} for {typed.text!r}"
                assert matches(typed.expected, came), (
                    f"{step}: {typed.text}\n--- expected {typed.expected}\n--- came\n{came}"
                )
            if not ended:
                read_until_prompt()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(terminal)
            _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"{step}: ended with {os.waitstatus_to_exitcode(status)}"
