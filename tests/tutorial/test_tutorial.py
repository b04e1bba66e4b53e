"""docs/tutorial.md, and docs/tutorial.zh.md in Chinese, typed into a lab. What a page prints must come back."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tutorial.console import Step, filled, matches, steps

DOCS = Path(__file__).resolve().parents[2] / "docs"
VXNET = [sys.executable, "-m", "vxnet"]
LAB = f"tutorial{os.getpid()}"

# These are typed once. Everything else only looks, and may be looked at until gossip has told everybody.
CHANGES = re.compile(
    r"vxnet (init|join|leave|run|rm|stop|kill|network (create|rm|connect|disconnect)|service (create|scale|update|rm))"
    r"\b"
)
LOOK_S = 30.0
"""A host that is back is met again within this."""
ANSWER_S = 30.0

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def lab() -> Iterator[None]:
    try:
        subprocess.run([*VXNET, "lab", "up", "--name", LAB, "--hosts", "4", "--no-join"], check=True)
        yield
    finally:
        subprocess.run([*VXNET, "lab", "down", "--name", LAB], check=False)


def on(host: str, command: str) -> list[str]:
    return [*VXNET, "lab", "exec", "--name", LAB, host, "--", "sh", "-c", command]


@pytest.mark.parametrize("page", ["tutorial.md", "tutorial.zh.md"])
def test_the_tutorial(lab: None, page: str) -> None:
    printed = ""
    for step in steps((DOCS / page).read_text()):
        command = filled(step.command.text, printed)
        if step.inside:
            converse(step, command)
        else:
            printed += answer(step, command)


def answer(step: Step, command: str) -> str:
    deadline = time.monotonic() + LOOK_S
    while True:
        run = subprocess.run(
            on(step.host, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=ANSWER_S,
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


def converse(step: Step, command: str) -> None:
    """Type ``step.inside`` into ``command``, which has a terminal, one line after each prompt."""
    pid, terminal = pty.fork()
    if pid == 0:
        argv = on(step.host, command)
        os.execv(argv[0], argv)
    heard = ""
    ended = False

    def read_until_prompt() -> str:
        nonlocal heard, ended
        deadline = time.monotonic() + ANSWER_S
        while not heard.endswith("# ") and not ended:
            readable, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{step}: no prompt after {ANSWER_S:g} s, only {heard!r}"
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
