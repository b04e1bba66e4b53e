"""Another version of vxnet, built from git, and hosts of a lab whose daemon is exchanged for it and back.

An older tree needs no installing: on ``PYTHONPATH`` it comes before the checkout, and takes its shim and its extensions
from beside itself. Its dependencies are those of today's environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.operator import eventually
from vxnet.lab import Lab, daemons

_CHECKOUT = Path(__file__).parents[2]
_BUILT = _CHECKOUT / "build" / "versions"


class Version(NamedTuple):
    tree: Path
    name: str
    """As its daemons tell it."""

    def argv(self, *words: str) -> list[str]:
        """To run ``words`` with this version."""
        return ["env", f"PYTHONPATH={self.tree}", *words]


def checkout() -> Version:
    """This one."""
    return Version(_CHECKOUT, _named(_CHECKOUT))


def build(commit: str) -> Version:
    """The tree of ``commit``, its C compiled, under a name of its own. Skips the test where history is not here: in a
    shallow clone, or none. A commit that history does not have is an error.
    """
    tree = _BUILT / commit
    if not tree.is_dir():
        # Whoever runs the tests need not own the checkout.
        git = ["git", "-C", str(_CHECKOUT), "-c", f"safe.directory={_CHECKOUT}"]
        shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, check=False)
        if shallow.stdout.strip() != b"false":
            pytest.skip(f"this is no full clone, from which {commit} could be built")
        found = subprocess.run([*git, "archive", commit], capture_output=True, check=False)
        assert found.returncode == 0, found.stderr.decode()
        beside = _BUILT / f"{commit}.{os.getpid()}"
        beside.mkdir(parents=True)
        try:
            subprocess.run(["tar", "-x"], cwd=beside, input=found.stdout, check=True)
            module = beside / "vxnet" / "__init__.py"
            module.write_text(re.sub(r'"([0-9.]+)"', rf'"\1+{commit}"', module.read_text()))
            subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=beside, check=True)
            beside.rename(tree)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return Version(tree, _named(tree))


def exchange(lab: Lab, host: str, version: Version) -> None:
    """As an upgrade does: the daemon is told to stop, and the other one started."""
    stop(lab, host)
    start(lab, host, version)


def stop(lab: Lab, host: str) -> None:
    lab.run(host, ["sh", "-c", "kill -TERM $(cat /run/vxnet/vxnetd.pid)"], check=True)
    eventually(lambda: not lab[host].daemon_pid)


def start(lab: Lab, host: str, version: Version) -> None:
    """Returns when it answers."""
    record = lab[host].record
    daemons.launch(lab.name, record, version.argv(*daemons.ARGV))
    daemons.wait_answering(lab.name, record)


def _named(tree: Path) -> str:
    found = re.search(r'^__version__ = "(.+)"$', (tree / "vxnet" / "__init__.py").read_text(), re.MULTILINE)
    assert found
    return found[1]
