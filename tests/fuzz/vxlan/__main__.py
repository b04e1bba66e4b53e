"""Coverage-guided: ``python -m tests.fuzz.vxlan [--seconds N] [TARGET…]``. Needs clang; root for nothing.

Each target is a program of its own, built when its sources have changed, and gets N seconds of processor time: a busy
machine takes longer and does no less. What is found is written to build/fuzz/vxlan, and the status is 1. The corpus
stays there too, so that the next run goes on from it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import libfuzzer
from tests.fuzz.vxlan.seeds import SEEDS

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc" / "vxlan"
PLACE = Path("build/fuzz/vxlan")
DEFAULT_S = 600
INPUT_LIMIT = 8192
"""Octets."""
FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE=", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror"),
    *("-fno-sanitize-recover=all", f"-I{CSRC}"),
)
SANITIZERS = "address,undefined"
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def build(name: str) -> Path:
    """The target's program."""
    newest = max(path.stat().st_mtime for path in [*CSRC.glob("*.[ch]"), HERE / "frames.h"])
    objects = [PLACE / "objects" / f"{source.stem}.o" for source in sorted(CSRC.glob("*.c"))]
    if any(not at.exists() or at.stat().st_mtime < newest for at in objects):
        objects[0].parent.mkdir(parents=True, exist_ok=True)
        command = ["clang", *FLAGS, f"-fsanitize=fuzzer-no-link,{SANITIZERS}", "-c", *sorted(CSRC.glob("*.c"))]
        subprocess.run(command, check=True, cwd=objects[0].parent)
    program, source = PLACE / f"{name}.bin", HERE / f"{name}.c"
    newest = max(path.stat().st_mtime for path in [*objects, source])
    if not program.exists() or program.stat().st_mtime < newest:
        command = ["clang", *FLAGS, f"-fsanitize=fuzzer,{SANITIZERS}", "-o", program, source, *objects, "-lpthread"]
        subprocess.run(command, check=True)
    return program


def cpu_s(pid: int) -> float:
    """Processor time of a process that runs, or has ended and is not yet waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def fuzz(name: str, seconds: float) -> bool:
    """Whether nothing was found."""
    program, log = build(name), PLACE / f"{name}.log"
    options = libfuzzer.options(PLACE, name, INPUT_LIMIT, SEEDS[name]())
    # Long inputs from the start, as the seeds are.
    options.insert(0, "-len_control=0")
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=subprocess.STDOUT)
        try:
            told, used = False, 0.0
            # Until it is waited for, its entry in /proc stays.
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                used = cpu_s(process.pid)
                if used >= seconds and not told:
                    process.send_signal(signal.SIGUSR1)  # libFuzzer prints its figures and goes
                    told = True
                time.sleep(0.1)
            used = cpu_s(process.pid)
        except BaseException:
            process.kill()
            process.wait()
            raise
    status = process.wait()
    libfuzzer.report(name, status, used, log)
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.vxlan", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=DEFAULT_S, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(SEEDS))
    options = parser.parse_args()
    if wrong := libfuzzer.unknown(options.targets, list(SEEDS)):
        print(wrong, file=sys.stderr)
        return 2
    if shutil.which("clang") is None:
        print("clang is not here: scripts/packages test, or apt-get install clang libclang-rt-14-dev", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by somebody"))  # as Ctrl-C: nothing stays behind
    clean = [fuzz(name, options.seconds) for name in options.targets or SEEDS]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
