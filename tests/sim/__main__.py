"""`python -m tests.sim [EXPERIMENT …]`: the long and the large, in virtual time, as Markdown tables for
docs/performance.md. Without arguments all but the longest."""

from __future__ import annotations

import argparse
import sys

from tests.sim import experiments


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="EXPERIMENT", help=", ".join(experiments.ALL))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0, help="of false-deaths")
    chosen = parser.parse_args()
    for name in chosen.names or [name for name in experiments.ALL if name not in ("false-deaths", "fingerprint")]:
        if name not in experiments.ALL:
            parser.error(f"no experiment {name!r}: there are {', '.join(experiments.ALL)}")
        experiments.ALL[name](chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
