"""Coverage-guided: ``python -m tests.fuzz [--seconds N] [TARGET…]``. Needs root for nothing.

Each target runs in a process of its own under atheris (libFuzzer for Python), and the time is shared out evenly. It
is processor time: a busy machine takes longer and does no less. What is found is written to build/fuzz, and the status
is 1. The corpus stays there too, so that the next run goes on from it.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from tests.fuzz import libfuzzer

PLACE = Path("build/fuzz")
DEFAULT_S = 600
INPUT_LIMIT = 4096
"""Octets."""
HANG_S = 10
"""Of processor time for one input: the process may well be stopped for longer."""


def one(name: str, seconds: int) -> int:
    """Fuzz ``name`` in this process for so many seconds of processor time. Does not return: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["vxnet.core", "vxnet.model"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    signal.signal(signal.SIGPROF, _hang)

    def run(data: bytes) -> None:
        if time.process_time() > seconds:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer prints its figures and goes
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        target.run(data)
        signal.setitimer(signal.ITIMER_PROF, 0)

    atheris.Setup([sys.argv[0], *libfuzzer.options(PLACE, name, INPUT_LIMIT, target.seeds)], run)
    atheris.Fuzz()
    return 0


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise AssertionError(f"one input took {HANG_S} s")


def _children_cpu_s() -> float:
    """Of all that have ended. On a busy machine it is less than the time that passed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=DEFAULT_S, help="for all targets together")
    parser.add_argument("--one", metavar="TARGET", help="in this process")
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not here: `pip install atheris` (CPython 3.11 to 3.13 on Linux)", file=sys.stderr)
        return 2
    if options.one:
        return one(options.one, options.seconds)

    from tests.fuzz.targets import TARGETS

    names = options.targets or list(TARGETS)
    if wrong := libfuzzer.unknown(names, list(TARGETS)):
        print(wrong, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by somebody"))  # as Ctrl-C: nothing stays behind
    failed = []
    for name in names:
        PLACE.mkdir(parents=True, exist_ok=True)
        log = PLACE / f"{name}.log"
        words = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--seconds",
            str(max(1, options.seconds // len(names))),
            "--one",
            name,
        ]
        before = _children_cpu_s()
        with log.open("wb") as output:
            done = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False)
        libfuzzer.report(name, done.returncode, _children_cpu_s() - before, log)
        if done.returncode:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
