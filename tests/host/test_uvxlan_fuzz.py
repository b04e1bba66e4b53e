"""The tunnel's C under sanitizers: torn input, coverage-guided input, and two whole forwarders with traffic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.vxlan.seeds import SEEDS

pytestmark = [pytest.mark.host, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc" / "vxlan"
FLAGS = ("-std=c11", "-D_GNU_SOURCE=", "-O1", "-g", "-fno-sanitize-recover=all", f"-I{CSRC}")


def test_parsers_with_torn_input_and_cutting_with_joining(tmp_path: Path, seed: int) -> None:
    sources = [CSRC / f"{name}.c" for name in ("packet", "cut", "join", "toobig", "command", "fdb")]
    harness, target = Path(__file__).parent / "uvxlan_fuzz.c", tmp_path / "fuzz"
    subprocess.run(["gcc", *FLAGS, "-fsanitize=address,undefined", "-o", target, harness, *sources], check=True)
    done = subprocess.run([target, str(seed), "10000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 10000, "every frame that was cut is whole again"


def test_the_coverage_guided_form_finds_nothing(tmp_path: Path) -> None:
    """`make fuzz-vxlan` does this for ten minutes each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.vxlan", "--seconds", "2"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" inputs ") == len(SEEDS) and " 0 inputs" not in done.stdout
