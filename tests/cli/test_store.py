"""store backup: where the managers' records go, and that only a plain file is ever replaced."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import Vxnet

SAID = "1 records as of revision 7 are in {}.\n"


def test_a_file_is_replaced_as_a_whole(vxnet_: Vxnet, tmp_path: Path) -> None:
    file, link = tmp_path / "b.json", tmp_path / "link"
    file.write_text("older")
    file.chmod(0o644)
    link.symlink_to(file)
    result = vxnet_("store", "backup", str(link))
    assert (result.exit_code, result.stdout) == (0, SAID.format(link))
    assert json.loads(file.read_bytes())["revision"] == 7
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == ["b.json", "link"]


def test_a_dash_is_standard_output(vxnet_: Vxnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = vxnet_("store", "backup", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["revision"] == 7
    assert result.stderr == SAID.format("-")
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_to_and_stays_one(vxnet_: Vxnet, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = vxnet_("store", "backup", str(pipe))
        assert (result.exit_code, result.stderr) == (0, SAID.format(pipe))
        assert json.loads(os.read(reader, 65536))["revision"] == 7
    finally:
        os.close(reader)
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("missing", ["nowhere/b.json", "directory"])
def test_what_cannot_be_written_is_said_and_leaves_nothing(vxnet_: Vxnet, tmp_path: Path, missing: str) -> None:
    (tmp_path / "directory").mkdir()
    result = vxnet_("store", "backup", f"{tmp_path}/{missing}")
    assert result.exit_code in (1, 2)
    assert f"{tmp_path}/{missing}" in result.stderr
    assert os.listdir(tmp_path) == ["directory"]
