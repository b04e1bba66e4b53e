"""The tunnel's C under sanitizers: torn input, coverage-guided input, and two whole forwarders with traffic."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.vxlan.seeds import SEEDS
from tests.host.throwaway import Place

pytestmark = [pytest.mark.host, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc" / "vxlan"
SOAK_S = float(os.environ.get("VXNET_SOAK_S", "3"))
"""Of traffic for each pair of forwarders: `make soak-vxlan` takes 20 minutes."""
PAIR = ("pair", "ends", "changes", "traffic")
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


@pytest.fixture(scope="module")
def pair_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds uvxlan_pair.c for a choice of sanitizers, once."""

    @functools.cache
    def build(sanitizers: str) -> Path:
        target = tmp_path_factory.mktemp("pair") / "pair"
        sources = [*CSRC.glob("*.c"), *(Path(__file__).parent / f"uvxlan_{name}.c" for name in PAIR)]
        flags = [*FLAGS, "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-fsanitize={sanitizers}"]
        subprocess.run(["gcc", *flags, "-o", target, *sources, "-lpthread"], check=True)
        return target

    return build


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize(("family", "queues"), [(4, 1), (6, 2)], ids=["IPv4, one queue", "IPv6, two queues"])
def test_two_forwarders_with_mixed_traffic_while_all_changes(
    pair_program: Callable[[str], Path], sanitizers: str, family: int, queues: int, seed: int
) -> None:
    """Nothing is lost, changed, out of order in its flow or stuck, and the sanitizer has nothing to say: see
    uvxlan_pair.c."""
    program = pair_program(sanitizers)
    place = Place()
    try:
        place.sh("ip link set lo mtu 1500 up")
        addresses = [f"127.0.0.{at}" if family == 4 else f"fd00::{at}" for at in (2, 3, 77)]
        if family == 6:
            for address in addresses:
                place.sh(f"ip addr add {address} dev lo nodad")
        done = json.loads(place.run(str(program), str(SOAK_S), str(seed), *addresses, str(queues)))
    finally:
        place.close()
    print(done)
    assert done["least"] > 0, "every kind of frame has come through"
    for name in ("joined", "commands", "too_big", "unreachable"):
        assert done[name] > 0, done
