"""The state directory: what is written is whole, what is damaged is named."""

from __future__ import annotations

import os
import stat
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from vxnet.daemon.state import GatewayChoice, LastMembers, LocalNode, StateDirectory
from vxnet.model.cluster import Network, Node
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import HostError
from vxnet.model.guest import Guest

NODE = Node(
    id="n1",
    name="h1",
    role="worker",
    advertise_addr=ip_address("192.168.56.11"),
    data_path_addr=ip_address("192.168.56.11"),
    joined_at=1.0,
)
CONTAINER = Container(id="ab" * 32, spec=ContainerSpec(name="web", argv=("true",)), created_at=1.0)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "vxnet")
    local = LocalNode(node=NODE, row_incarnation=3)
    state.save_local_node(local)
    state.save_last_members(LastMembers(addresses=(ip_address("fd56::12"),)))
    state.save_gateway(GatewayChoice(addresses=(ip_interface("172.19.0.1/16"),)))
    state.save_container(CONTAINER)
    again = StateDirectory(tmp_path / "vxnet")
    assert again.local_node() == local
    assert again.last_members().addresses == (ip_address("fd56::12"),)
    assert again.gateway() == GatewayChoice(addresses=(ip_interface("172.19.0.1/16"),))
    assert again.containers() == [CONTAINER]


def test_secrets_are_for_root_alone(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    before = os.umask(0)
    try:
        state.save_credentials(b"certificate", b"key")
        state.save_container(CONTAINER)  # its environment
        state.save_local_node(LocalNode(node=NODE))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()} == {0o600}
    for directory in (state.containers_path, state.container_directory(CONTAINER.id)):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert state.credentials() == (b"certificate", b"key")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"node": 3}', b"\xff\xfe"])
def test_a_damaged_file_is_named_and_not_replaced(tmp_path: Path, damage: bytes) -> None:
    state = StateDirectory(tmp_path)
    (tmp_path / "node.json").write_bytes(damage)
    with pytest.raises(HostError, match=r"node\.json is damaged") as caught:
        state.local_node()
    assert f"move {tmp_path / 'node.json'} away" in caught.value.hint  # without a daemon there is no `vxnet leave`
    assert (tmp_path / "node.json").read_bytes() == damage


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory(tmp_path)
    state.save_local_node(LocalNode(node=NODE))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="No space left on device"):
        state.save_local_node(LocalNode(node=NODE, row_incarnation=9))
    assert state.local_node() == LocalNode(node=NODE)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_a_creation_cut_short_by_a_crash_is_removed(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    half = state.container_directory("cd" * 32)
    half.mkdir()
    (half / "hosts").write_text("")
    state.save_container(CONTAINER)
    assert state.containers() == [CONTAINER]
    assert not half.exists()


def test_one_damaged_container_harms_no_other(tmp_path: Path) -> None:
    """Its record is not synced: after a power cut it may be empty."""
    state = StateDirectory(tmp_path)
    damaged = tmp_path / "containers" / ("0" * 64)
    damaged.mkdir()
    (damaged / "container.json").write_bytes(b"")
    state.save_container(CONTAINER)
    assert state.containers() == [CONTAINER]
    assert damaged.exists()


@pytest.mark.parametrize("kind", ["containers", "guests", "networks"])
def test_a_directory_that_cannot_be_is_the_hosts_error(tmp_path: Path, kind: str) -> None:
    """A disk without inodes, say; a file is in its place here."""
    state = StateDirectory(tmp_path)
    (tmp_path / "containers").rmdir()
    (tmp_path / kind).write_text("")
    network = Network(id="n", name="n", vni=1, subnets=())
    guest = Guest(id="g", name="g", namespace=(1, 2), resolver=ip_address("127.0.0.11"), created_at=0.0)
    save = {
        "containers": lambda: state.save_container(CONTAINER),
        "guests": lambda: state.save_guest(guest),
        "networks": lambda: state.save_network(network),
    }[kind]
    with pytest.raises(HostError, match=f"{tmp_path}/{kind}"):
        save()


def test_nothing_of_the_cluster_stays_after_leaving(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_local_node(LocalNode(node=NODE))
    state.save_credentials(b"certificate", b"key")
    for name in ("store.db", "store.db-wal", "store.db-shm"):
        (tmp_path / name).write_bytes(b"x")
    state.forget_cluster()
    assert [path.name for path in tmp_path.iterdir()] == ["containers"]
