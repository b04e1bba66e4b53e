"""Namespaces: named as ``ip netns`` names them, and gone without a trace."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.host.throwaway import Host, Place
from vxnet.host import datapath, elements, netns
from vxnet.host.kernel import Kernel
from vxnet.host.netlink import Netlink
from vxnet.model.errors import HostError
from vxnet.model.host import HostState, Sandbox, Segment

pytestmark = pytest.mark.host

NAME = "vxnet"


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def test_name_is_that_of_ip_netns(host: Host) -> None:
    namespace = netns.create()
    host.do(netns.bind_name, namespace, NAME)
    assert host.run("ip", "netns").split() == [NAME]
    inside = host.run("ip", "netns", "exec", NAME, "readlink", "/proc/self/ns/net").strip()
    assert inside == f"net:[{os.fstat(namespace).st_ino}]"
    adopted = host.do(netns.adopt_named, NAME)
    assert adopted is not None and netns.identity(adopted) == netns.identity(namespace)
    # ip netns add later copies the directory's mounts; the name still goes as a whole.
    host.sh("ip netns add other")
    assert host.do(netns.remove_name, NAME)
    assert host.run("ip", "netns").split() == ["other"]
    assert not host.do(netns.remove_name, NAME)
    host.sh("ip netns del other")
    os.close(namespace)
    os.close(adopted)


def test_nothing_is_left(host: Host) -> None:
    before = host.run("cut", "-d ", "-f5", "/proc/thread-self/mountinfo")
    namespace = netns.create()
    host.do(netns.bind_name, namespace, NAME)
    assert host.do(netns.remove_name, NAME)
    assert host.run("find", "/run").split() == ["/run"]
    assert host.run("cut", "-d ", "-f5", "/proc/thread-self/mountinfo") == before
    os.close(namespace)


def test_leftover_file_is_no_namespace(host: Host) -> None:
    """As after an unmount, or on a /run that outlived a reboot."""
    host.sh("mkdir -p /run/netns; touch /run/netns/vxnet")
    assert host.do(netns.adopt_named, NAME) is None
    assert host.do(netns.remove_name, NAME)


def test_a_host_that_had_no_descriptor_left_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held the namespace and no socket in it, which the next attempt fell over for good."""
    state = HostState(segments=(Segment(vni=65536, mtu=1400, local=ip_address("127.0.0.1")),))
    kernel = host.do(Kernel)
    held = len(os.listdir("/proc/self/fd"))

    def refuse(namespace: int) -> Netlink:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as none_left:
        none_left.setattr(datapath, "Netlink", refuse)
        for _ in range(2):
            with pytest.raises(HostError, match="Too many open files"):
                host.do(kernel.reconcile, state)
    assert len(os.listdir("/proc/self/fd")) == held
    assert all(not change.error for change in host.do(kernel.reconcile, state))
    host.do(kernel.close)


def test_no_place_for_the_name(host: Host) -> None:
    host.sh("mount -o remount,ro /run")
    namespace = netns.create()
    with pytest.raises(HostError, match="Read-only file system"):
        host.do(netns.bind_name, namespace, NAME)
    os.close(namespace)


def test_names_that_the_host_would_not_see(host: Host) -> None:
    assert not host.do(netns.hidden_from_host)
    host.sh("mount --make-shared /run")
    assert not host.do(netns.hidden_from_host)

    def under_slave() -> bool:
        netns.unshare(netns.CLONE_NEWNS)
        netns.mount("", "/", None, netns.MS_REC | (1 << 19))  # MS_SLAVE, as systemd's sandboxing does
        return netns.hidden_from_host()

    assert host.do(lambda: netns.in_thread(under_slave))


def test_a_host_that_makes_no_thread_is_the_hosts_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's fork bomb: Python says RuntimeError, and that ended the daemon."""
    container = Place()
    box = Sandbox(id="0" * 64, netns=container.path, dns_port=5353)
    state = HostState(segments=(Segment(vni=65536, mtu=1400, local=ip_address("127.0.0.1")),), sandboxes=(box,))
    kernel = host.do(Kernel)
    assert all(not change.error for change in host.do(kernel.reconcile, state))

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    kernel._closer.take(Netlink(host.fd, elements.NETLINK_NETFILTER))
    with monkeypatch.context() as bomb:
        bomb.setattr(threading.Thread, "start", refuse)
        with pytest.raises(HostError, match="thread"):
            host.do(kernel.reconcile, state)
        kernel._closer.begin()
        kernel._forgetter.look(None, None, everywhere=True)
    assert all(not change.error for change in host.do(kernel.reconcile, state))
    host.do(kernel.close)
    container.close()


def test_errors_come_out_of_the_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        netns.in_thread(lambda: 1 // 0)
    with pytest.raises(OSError, match="setns"), open(os.devnull) as wrong:
        netns.inside(wrong.fileno(), lambda: None)


def test_caller_stays_where_it_is() -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    namespace = netns.create()
    with netns.netlink_socket(namespace) as opened:
        assert opened.family == socket.AF_NETLINK
    assert netns.inside(namespace, lambda: os.stat("/proc/thread-self/ns/net").st_ino) == os.fstat(namespace).st_ino
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    os.close(namespace)


def test_sysctls_are_written_where_they_differ(host: Host) -> None:
    def set_and_tell() -> list[list[str]]:
        wanted = {"ipv4/ip_forward": "1", "ipv4/no_such_thing": "1"}
        return [netns.set_sysctls(wanted), netns.set_sysctls(wanted)]

    namespace = netns.create()
    outside = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    assert netns.inside(namespace, set_and_tell) == [["ipv4/ip_forward"], []]
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == outside
    os.close(namespace)


def test_gone_process_has_no_namespace() -> None:
    assert netns.open_path("/proc/4194305/ns/net") is None


def test_file_systems() -> None:
    assert netns.kernel_has_filesystem("proc")
    assert not netns.kernel_has_filesystem("vxnetfs")
