"""What people install: an sdist holds all that a wheel is made of, and the wheel all that runs."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*argv: str, cwd: Path) -> None:
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_sdist_to_wheel(tmp_path: Path) -> None:
    made = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "bin", "_syscalls.c")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=made)
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=tree)
    [archive] = tmp_path.glob("vxnet-*.tar.gz")
    run("tar", "-xzf", str(archive), cwd=tmp_path)
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    for name in ("LICENSE", "Makefile", "scripts/packages", "docs/tutorial.md", "tests/conftest.py", "systemd"):
        assert (source / name).exists(), f"the sdist has no {name}"

    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", str(tmp_path), str(source), cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
        shim = contents.getinfo("vxnet/bin/vxnet-shim")
        contents.extract(shim, tmp_path)
    wanted = {str(path.relative_to(tree)) for path in (tree / "vxnet").rglob("*") if path.suffix in (".py", ".pyi")}
    assert wanted | {"vxnet/py.typed", "vxnet/host/_syscalls.abi3.so"} <= names
    assert shim.external_attr >> 16 & stat.S_IXUSR, "the shim lost its x bit on the way"
    program = tmp_path / shim.filename
    program.chmod(0o755)
    refused = subprocess.run([program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert refused.returncode == 125
    assert "started by vxnetd" in refused.stderr
