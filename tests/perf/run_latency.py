"""``vxnet run`` and ``ps`` as their caller feels them: wall time of the command, timed on the host itself."""

from __future__ import annotations

import json

from tests.perf.measure import ms, python, sh, table
from vxnet.lab import Lab

RUNS = 15

TIMED = """
import json, subprocess, sys, time
argv, times = json.loads(sys.argv[1]), []
for number in range(int(sys.argv[2])):
    started = time.monotonic()
    subprocess.run([word.replace("%d", str(number)) for word in argv], check=True, stdout=subprocess.DEVNULL)
    times.append(time.monotonic() - started)
print(json.dumps(times))
"""


def timed(lab: Lab, host: str, argv: list[str], runs: int) -> list[float]:
    times: list[float] = json.loads(python(lab, host, TIMED, json.dumps(argv), str(runs), timeout_s=300))
    return times


def main() -> None:
    with Lab(hosts=2) as lab:
        first = []
        for number in range(RUNS):
            sh(lab, "h1", f"vxnet network create -d overlay --attachable new{number}")
            argv = ["vxnet", "run", "--rm", "--network", f"new{number}", "--", "true"]
            first += timed(lab, "h2", argv, 1)
            sh(lab, "h1", f"vxnet network rm new{number}")

        sh(lab, "h1", "vxnet network create -d overlay --attachable live")
        sh(lab, "h2", "vxnet run -d --name keeper --network live -- sleep infinity")
        live = timed(lab, "h2", ["vxnet", "run", "--rm", "--network", "live", "--", "true"], RUNS)
        hundred = timed(
            lab,
            "h2",
            ["vxnet", "run", "-d", "--name", "c%d", "--network", "live", "--", "sleep", "infinity"],
            100,
        )
        ps = timed(lab, "h2", ["vxnet", "ps"], RUNS)
        sh(lab, "h2", "vxnet ps -q | xargs vxnet rm -f")
    table(
        "Commands",
        ["", "bound, ms", "Docker 20.10, ms", "median [range], ms"],
        [
            ["`run --rm --network N -- true`, N live on the host", "150", "669", ms(live)],
            ["… first use of N on the host", "300", "1269", ms(first)],
            ["100 × `run -d`, one after the other: total", "15000", "51000", f"{sum(hundred) * 1000:.0f}"],
            ["… each", "–", "–", ms(hundred)],
            ["`ps` beside 101 containers", "100", "–", ms(ps)],
        ],
    )
