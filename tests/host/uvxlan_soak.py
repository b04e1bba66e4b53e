"""As it is used, with real TAPs, under ASan and UBSan: ``python -m tests.host.uvxlan_soak [--seconds N]``, as root.

Two hosts of tests/host/uvxlan_rig.py, between them iperf3 with TCP and UDP in both directions and streams of which
every octet is compared, over IPv4 and IPv6 in turn; meanwhile 100,000 rows come and go. It fails when a sanitizer has
something to say, when no octet comes for a while (a stuck flow), or when the forwarders grow.

Leaks are found by tests/host/uvxlan_pair.c: here the interpreter's own would drown them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.host.uvxlan_rig import VNI, End, Pair, cable, give_addresses, stream

ROOT = Path(__file__).parents[2]
ROWS = {struct.pack(">HI", 0x0600, at): socket.inet_aton(f"192.0.{at % 250}.9") for at in range(100_000)}
ROUND_S = 15
PIECES = 100
"""Megabytes of a compared stream in each round."""
GROWTH_KB = 4096
"""Between the first rounds, when all that it needs has been touched, and the end."""


def build(place: Path) -> dict[str, str]:
    """vxnet with a tunnel that has the sanitizers, in ``place``; the environment that runs it."""
    for name in ("vxnet", "csrc"):
        shutil.copytree(ROOT / name, place / name)
    (place / "vxnet" / "host" / "_vxlan.abi3.so").unlink()
    code = "import runpy; runpy.run_path('csrc/ffi_build.py')['vxlan'].compile()"
    flags = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    environment = os.environ | {"CFLAGS": flags, "LDFLAGS": flags}
    subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, stdout=subprocess.DEVNULL, check=True)
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name={name}.so"], text=True).strip()
        for name in ("libasan", "libubsan")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(place),
        "PYTHONSAFEPATH": "1",  # not the folder where this runs
        # Its own quarantine would look like growth.
        "ASAN_OPTIONS": f"detect_leaks=0:quarantine_size_mb=1:log_path={place}/sanitizer",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={place}/sanitizer",
    }


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def rss_kb(end: End) -> int:
    status = Path(f"/proc/{end.forwarders_pid()}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def change_rows(pair: Pair, done: threading.Event) -> int:
    """Until it is done; how often."""
    turns = 0
    while not done.wait(1):
        for end in pair:
            keep = {bytes.fromhex(end.other_mac.replace(":", "")): end.remote_packed}
            end.forwarder.replace(VNI, (ROWS if turns % 2 else {}) | keep)
        turns += 1
    return turns


def iperf(pair: Pair, version: int, *words: str) -> float:
    """Gb/s, where something came in every interval of three seconds."""
    one, two = pair
    command = ["iperf3", "-s", "-1", "-J", "-B", two.address(version)]
    server = two.do(subprocess.Popen, command, stdout=subprocess.PIPE)
    try:
        wanted = f"[{two.address(version)}]:5201" if version == 6 else f"{two.address(version)}:5201"
        deadline = time.monotonic() + 10
        while wanted not in two.run("ss", "-Hltn"):
            assert time.monotonic() < deadline, "iperf3 does not listen"
        report = json.loads(one.run("iperf3", "-c", two.address(version), "-J", "-i", "3", "-t", str(ROUND_S), *words))
    finally:
        server.kill()
        server.communicate()
    assert "error" not in report, report["error"]
    quiet = [interval["sum"] for interval in report["intervals"] if not interval["sum"]["bytes"]]
    assert not quiet, f"nothing came: {quiet}"
    ended = report["end"]
    return float(ended["sum_received" if "sum_received" in ended else "sum"]["bits_per_second"]) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.host.uvxlan_soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o711)  # the forwarder has a user of its own
        values = build(place / "tree")
        logs = place / "tree"
        pair = End(1, "user", 4, place, 1), End(2, "user", 4, place, 1)
        done = threading.Event()
        try:
            cable(pair[0], "eth0", pair[1], "eth0")
            with environment(values):
                for end in pair:
                    end.up()
            for version in (4, 6):
                give_addresses(pair, version)
            maps = Path(f"/proc/{pair[0].forwarders_pid()}/maps").read_text()
            assert "libasan" in maps and str(place) in maps, "the forwarder was built without sanitizers"
            with ThreadPoolExecutor(1) as changes:
                changing = changes.submit(change_rows, pair, done)
                try:
                    soak(pair, options.seconds)
                finally:
                    done.set()
            for end in pair:
                print(end.number, end.forwarder.counters())
                assert end.count("bad_checksum") == end.count("bad_frame") == end.count("not_sent") == 0
            print(f"{changing.result()} times 100,000 rows came or went")
        finally:
            for end in pair:
                end.close()
            found = [path.read_text(errors="replace") for path in logs.glob("sanitizer.*")]
            print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


def soak(pair: Pair, seconds: float) -> None:
    manners = (
        (),
        ("-P", "4"),
        ("-R", "-P", "4"),
        ("-u", "-b", "200M", "-l", "64"),
        ("-u", "-b", "1G", "-l", "1400", "--bidir"),
        ("--bidir",),
    )
    began, turn, first = time.monotonic(), 0, [0, 0]
    while time.monotonic() - began < seconds:
        words, version = manners[turn % len(manners)], 6 if turn // len(manners) % 2 else 4
        rate = iperf(pair, version, *words)
        stream(*(pair if turn % 2 else pair[::-1]), version, PIECES, flows=2)
        used = [rss_kb(end) for end in pair]
        print(
            f"{time.monotonic() - began:6.0f} s  IPv{version} {' '.join(words):26} {rate:5.2f} Gb/s  RSS {used} kB",
            flush=True,
        )
        turn += 1
        if turn <= 2 * len(manners):
            first = [max(before, now) for before, now in zip(first, used, strict=True)]
        else:
            grown = [now - before for before, now in zip(first, used, strict=True)]
            assert max(grown) < GROWTH_KB, f"the forwarders have grown by {grown} kB"


if __name__ == "__main__":
    sys.exit(main())
