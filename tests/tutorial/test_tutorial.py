"""docs/tutorial.md, and docs/tutorial.zh.md in Chinese, typed into a lab."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tutorial.typist import Typist

DOCS = Path(__file__).resolve().parents[2] / "docs"
VXNET = [sys.executable, "-m", "vxnet"]
LAB = f"tutorial{os.getpid()}"

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[None]:
    """``request.param``: options of ``lab up``."""
    try:
        subprocess.run([*VXNET, "lab", "up", "--name", LAB, "--hosts", "4", "--no-join", *request.param], check=True)
        yield
    finally:
        subprocess.run([*VXNET, "lab", "down", "--name", LAB], check=False)


def on(host: str, command: str, *, terminal: bool) -> list[str]:
    return [*VXNET, "lab", "exec", "--name", LAB, host, "--", "sh", "-c", command]


@pytest.mark.parametrize(
    ("page", "lab"),
    [("tutorial.md", ["--datapath", "h2=userspace"]), ("tutorial.zh.md", [])],
    ids=["with-both-kinds-of-tunnels", "zh"],
    indirect=["lab"],
)
def test_the_tutorial(lab: None, page: str) -> None:
    Typist(on).type((DOCS / page).read_text())
