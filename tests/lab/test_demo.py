"""The demo holds, and says so only then."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tutorial.console import matches
from vxnet.lab import Lab, figures
from vxnet.lab.stage import Stage, WrongError

pytestmark = pytest.mark.lab

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    with Lab(hosts=1, daemon_argv=()) as lab:
        yield lab


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo() -> None:
    done = subprocess.run([sys.executable, "-m", "vxnet", "lab", "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "All of it held" in done.stdout
    assert "VXLAN by hand" in done.stdout
    assert "\x1b" not in done.stdout, "colours where there is no terminal"
    assert done.stderr == ""
    # README.md shows some of it, and leaves out what comes before a prompt.
    [shown] = re.findall(r"```console\n(h1# vxnet init.*?)```", README.read_text(), re.DOTALL)
    excerpt = re.sub(r"^(?=\s*(?:h\d)?# )", "…\n", shown, flags=re.MULTILINE) + "…"
    assert matches(excerpt.splitlines(), done.stdout), "README.md shows what the demo does not print"


def test_what_is_typed_and_what_comes_back_is_shown(plain: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert Stage().type(plain, "h1", "echo one; echo two >&2", "^one$", "^two$") == "one\ntwo\n"
    assert capsys.readouterr().out == "h1# echo one; echo two >&2\none\ntwo\n"
    Stage().type(plain, "h1", "seq 100")
    assert capsys.readouterr().out.splitlines()[-4:] == ["11", "…", "99", "100"]


@pytest.mark.parametrize(
    ("command", "expected", "refused", "words"),
    [
        ("echo one", ["two"], False, "`echo one` on h1: expected two"),
        ("echo one; false", ["one"], False, "its status is 1"),
        ("echo one", ["one"], True, "its status is 0"),
    ],
)
def test_what_is_wrong_is_said(plain: Lab, command: str, expected: list[str], refused: bool, words: str) -> None:
    with pytest.raises(WrongError, match=words):
        Stage().type(plain, "h1", command, *expected, refused=refused)


def test_a_look_waits_until_it_is_so(plain: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plain.run("h1", ["sh", "-c", "(sleep 0.4; echo now >/tmp/late) >/dev/null 2>&1 &"])
    Stage().look(plain, "h1", "cat /tmp/late", "now")
    monkeypatch.setattr("vxnet.lab.stage._LOOK_S", 0.2)
    with pytest.raises(WrongError, match=r"also after 0\.2 s: its status is 1"):
        Stage().look(plain, "h1", "cat /tmp/never")


def test_a_conversation(plain: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    Stage().converse(
        plain, "h1", "env PS1='# ' sh", ("tty", "/dev/pts/"), ("test -t 0 && echo a terminal", "a terminal")
    )
    assert "    # test -t 0 && echo a terminal\n    a terminal\n    # exit\n" in capsys.readouterr().out
    with pytest.raises(WrongError, match="`echo one` in the container said 'one"):
        Stage().converse(plain, "h1", "env PS1='# ' sh", ("echo one", "two"))
    with pytest.raises(WrongError, match="it ended, and had said 'gone"):
        Stage().converse(plain, "h1", "echo gone")


def test_a_path_that_is_far_slower_is_a_complaint() -> None:
    by_hand = figures.Path("VXLAN by hand", [], "", megabits=[9000, 10000, 9500], rtt_us=[30])
    assert not figures.complaint([by_hand, figures.Path("vxnet", [], "", megabits=[8000], rtt_us=[30])])
    slow = figures.Path("vxnet", [], "", megabits=[2000, 2100, 9000], rtt_us=[30])
    assert "vxnet carries 2100 Mb/s" in figures.complaint([by_hand, slow])
    assert figures.table([by_hand, slow])[1].split() == ["VXLAN", "by", "hand", "9.5", "Gb/s", "30", "µs"]
