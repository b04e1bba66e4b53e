"""The etcd member's process as a unit of systemd's."""

from __future__ import annotations

from pathlib import Path

import pytest

from vxnet.host import systemd
from vxnet.host.etcd import EtcdProcess
from vxnet.model.errors import HostError


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EtcdProcess:
    monkeypatch.setattr(systemd, "runs_daemon", lambda: True)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return EtcdProcess(tmp_path / "etcd")


def systemctl(tmp_path: Path, words: str, status: int) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit {status}\n")
    program.chmod(0o755)


def test_one_that_does_not_run_is_stopped_already(process: EtcdProcess, tmp_path: Path) -> None:
    """Its unit is collected. What undoes a start that failed must not hide why; nor may it keep a member from being
    taken off a host, or from going on alone."""
    systemctl(tmp_path, "Failed to stop vxnet-etcd.service: Unit vxnet-etcd.service not loaded.", 5)
    process.stop()


def test_refusals_are_told(process: EtcdProcess, tmp_path: Path) -> None:
    systemctl(tmp_path, "Access denied", 4)
    with pytest.raises(HostError, match="systemctl refuses: Access denied"):
        process.stop()
