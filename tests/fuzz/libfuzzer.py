"""What libFuzzer is told and what it tells, be the target Python's or C's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

MEMORY_MB = 1024
STUCK_S = 900
"""For one input, of any time: the process may well be stopped for long."""
LINES_SHOWN = 60


def options(place: Path, name: str, input_limit: int, seeds: Iterable[bytes]) -> list[str]:
    """Its flags, the last of which is the target's corpus: there from earlier runs, and with ``seeds`` in it."""
    corpus = place / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    return [
        f"-max_len={input_limit}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={STUCK_S}",
        f"-artifact_prefix={place}/{name}-",
        "-print_final_stats=1",
        str(corpus),
    ]


def report(name: str, status: int, cpu_s: float, log: Path) -> None:
    """A line of what ``log`` says; its end too where the target failed."""
    words = log.read_text(errors="replace")
    covered = re.findall(r"\bcov: (\d+)", words) or ["?"]
    figures = dict(re.findall(r"^stat::(\w+): *(\d+)", words, re.MULTILINE))
    runs, memory = figures.get("number_of_executed_units", "?"), figures.get("peak_rss_mb", "?")
    print(
        f"{name:14} {runs:>10} inputs {covered[0]:>5} → {covered[-1]:>5} branches {memory:>5} MB "
        f"{cpu_s:>5.0f} s of CPU  {'FAILED' if status else ''}".rstrip(),
        flush=True,
    )
    if status:
        print(*words.splitlines()[-LINES_SHOWN:], sep="\n", file=sys.stderr)


def unknown(names: Iterable[str], there: Sequence[str]) -> str:
    """What to say of names that are no targets; empty: all are."""
    wrong = sorted(set(names) - set(there))
    return f"no such target: {', '.join(wrong)}; there are {', '.join(there)}" if wrong else ""
