"""The bundle's file: root's alone, nobody else's link followed, and not there when it was interrupted."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from vxnet.cli.root import root
from vxnet.cluster.client import Client
from vxnet.tools import bundle


def write(monkeypatch: pytest.MonkeyPatch, path: Path, *, interrupted: bool = False) -> None:
    def files(*_: object) -> Iterator[tuple[str, bytes]]:
        yield "version", b"1"
        if interrupted:
            raise KeyboardInterrupt
        yield "links.txt", b"2"

    monkeypatch.setattr(bundle, "_files", files)
    bundle.write(Client(str(path.parent / "none.sock")), path, lambda: None)


def test_it_is_whole_and_for_its_owner_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    write(monkeypatch, path)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        assert [name.partition("/")[2] for name in tar.getnames()] == ["version", "links.txt"]


def test_it_goes_to_standard_output(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setattr(bundle, "_files", lambda *_: iter([("version", b"1")]))
    bundle.write(Client("none.sock"), None, lambda: None)
    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as tar:
        assert [name.partition("/")[2] for name in tar.getnames()] == ["version"]


def test_a_link_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write(monkeypatch, path)
    assert not (tmp_path / "elsewhere").exists()
    assert path.is_symlink()


def test_it_is_for_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    result = CliRunner().invoke(root, ["--socket", f"{tmp_path}/none", "bundle", "-o", f"{tmp_path}/b"])
    assert (result.exit_code, result.stderr) == (1, "vxnet: a bundle holds what only root may see; use sudo\n")
    assert not list(tmp_path.iterdir())


def test_interrupted_it_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(monkeypatch, tmp_path / "b.tar.gz", interrupted=True)
    assert not list(tmp_path.iterdir())
