"""Where a lab finds its things on odd machines: missing folders, links into /run, a checkout below /tmp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vxnet
from vxnet.lab import boot, commands, mountpoints, state
from vxnet.lab.state import LabState


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has an /etc and a /var/lib, and never saw a lab."""
    monkeypatch.setattr(state, "RUN", tmp_path / "run/vxnet-lab")
    folders = ("var/lib/vxnet", "etc/vxnet", "run/netns")
    monkeypatch.setattr(mountpoints, "_FOLDERS", tuple(tmp_path / folder for folder in folders))
    monkeypatch.setattr(mountpoints, "_FILES", (tmp_path / "etc/hosts", tmp_path / "etc/resolv.conf"))
    for folder in ("etc", "var/lib", "run"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def everything(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def up(name: str) -> None:
    state.folder(name).mkdir(parents=True)
    mountpoints.ensure()


def down(name: str) -> None:
    state.forget(name)
    mountpoints.release()


def test_missing_places_are_made_and_go_with_the_last_lab(machine: Path) -> None:
    before = everything(machine)
    up("one")
    up("two")
    assert {"etc/vxnet", "var/lib/vxnet", "etc/hosts", "run/netns"} <= set(everything(machine))
    down("one")
    assert (machine / "etc/vxnet").is_dir()
    down("two")
    state.RUN.rmdir()
    assert everything(machine) == before


def test_a_lab_whose_file_is_damaged_hides_no_other(machine: Path) -> None:
    """`vxnet lab down` is what it needs, and for that one has to know of it."""
    for name in ("broken", "whole"):
        up(name)
        state.save(LabState(name=name))
    (state.folder("broken") / "lab.json").write_text("{")
    assert [lab.name for lab in commands.ls()] == ["broken", "whole"]


def test_what_was_there_or_came_meanwhile_stays(machine: Path) -> None:
    (machine / "etc/vxnet").mkdir()
    (machine / "etc/resolv.conf").symlink_to("/nowhere")
    up("one")
    (machine / "var/lib/vxnet/node.json").touch()
    (machine / "etc/hosts").write_text("127.0.0.1 localhost\n")
    down("one")
    assert (machine / "etc/vxnet").is_dir()
    assert (machine / "etc/resolv.conf").is_symlink()
    assert (machine / "var/lib/vxnet/node.json").exists()
    assert (machine / "etc/hosts").exists()
    assert not (machine / "run/netns").exists()


def test_a_killed_up_has_said_what_it_would_make(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(machine)

    def killed(path: Path, **options: object) -> None:
        raise KeyboardInterrupt

    state.folder("one").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", killed)  # the files come last
        with pytest.raises(KeyboardInterrupt):
            mountpoints.ensure()
    assert (machine / "etc/vxnet").is_dir()
    down("one")
    state.RUN.rmdir()
    assert everything(machine) == before


def test_a_link_is_followed_to_where_it_leads(tmp_path: Path) -> None:
    plain = tmp_path / "resolv.conf"
    plain.touch()
    assert boot._mount_point(str(plain)) == str(plain)
    link = tmp_path / "linked.conf"
    link.symlink_to(tmp_path / "run/resolve/stub.conf")
    assert boot._mount_point(str(link)) == str(tmp_path / "run/resolve/stub.conf")
    assert (tmp_path / "run/resolve/stub.conf").is_file()


@pytest.mark.lab
def test_a_checkout_below_tmp(tmp_path: Path) -> None:
    """A host's /tmp is its own, but vxnet must be in it when that is where it runs from."""
    shutil.copytree(Path(vxnet.__file__).parent, tmp_path / "vxnet", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path.parent / "foreign").touch()
    code = """
import sys
from vxnet.lab import Lab
with Lab(hosts=1, daemon_argv=()) as lab:
    print(lab.run("h1", [sys.executable, "-c", "import vxnet; print(vxnet.__file__)"], check=True).stdout.strip())
    print(lab.run("h1", ["find", "/tmp", "-name", "foreign"]).stdout.strip())
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == [str(tmp_path / "vxnet/__init__.py")]
