"""The Vagrantfile: what `vagrant validate` says of it, without a box and without a provider."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

VAGRANTFILE = Path(__file__).resolve().parents[2] / "vagrant/Vagrantfile"


def validate(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "Vagrantfile").write_text(text)
    (folder / "vxnet.deb").touch()
    own = {"VAGRANT_HOME": str(folder / "home"), "VXNET_PACKAGE": str(folder / "vxnet.deb"), "VXNET_NODES": "2"}
    argv = ["vagrant", "validate", "--ignore-provider"]
    return subprocess.run(argv, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_vagrant_accepts_it(tmp_path: Path) -> None:
    good = validate(tmp_path, VAGRANTFILE.read_text())
    assert good.returncode == 0, good.stdout + good.stderr
    assert "n2" in good.stdout
    assert "n3" not in good.stdout
    # It looks at what is written there: a setting that there is not is refused.
    bad = validate(tmp_path, VAGRANTFILE.read_text().replace("node.vm.hostname", "node.vm.hostnam"))
    assert bad.returncode != 0
    assert "hostnam" in bad.stdout + bad.stderr
