"""A throw-away host: a thread with a network and a mount namespace of its own.

The thread unshares both, makes its mounts private and puts an empty tmpfs on /run, so that /run/netns is its own. The
Kernel under test is made and used in that thread, as a daemon would in its process; programs started from it (``ip``,
``bridge``, ``nft``, ``ping``) are on that host too. When the thread ends, everything is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vxnet.host import netns

T = TypeVar("T")


class Place:
    """A network namespace held by a descriptor, with a thread in it."""

    def __init__(self, *, mounts: bool = False) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._mounts = mounts
        self.fd = self.do(self._enter)
        self.path = f"/proc/self/fd/{self.fd}"

    def _enter(self) -> int:
        netns.unshare(netns.CLONE_NEWNET | (netns.CLONE_NEWNS if self._mounts else 0))
        if self._mounts:
            netns.mount("", "/", None, netns.MS_REC | netns.MS_PRIVATE)
            netns.mount("run", "/run", "tmpfs", 0)
        self.tid = threading.get_native_id()
        return netns.current()

    def do(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """Call ``function`` in the thread."""
        return self._thread.submit(function, *arguments, **keywords).result()

    def run(self, *argv: str, check: bool = True, stdin: str | None = None) -> str:
        """What a program in this place prints. Raises AssertionError with its errors."""
        done = self.do(subprocess.run, argv, capture_output=True, text=True, input=stdin)
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr or done.stdout}"
        return str(done.stdout)

    def sh(self, line: str) -> str:
        return self.run("sh", "-ec", line)

    def links(self, *argv: str) -> dict[str, dict[str, Any]]:
        """``ip -d -j link`` by name."""
        return {link["ifname"]: link for link in json.loads(self.run("ip", *argv, "-d", "-j", "link"))}

    def close(self) -> None:
        os.close(self.fd)
        self._thread.shutdown()


class Host(Place):
    def __init__(self) -> None:
        super().__init__(mounts=True)
        self.sh("ip link set lo up")

    def inside(self, *argv: str, check: bool = True) -> str:
        """Run in this host's namespace ``vxnet``."""
        return self.run("nsenter", "--net=/run/netns/vxnet", *argv, check=check)


def wire(one: Host, name: str, other: Host, other_name: str) -> None:
    """A cable between two hosts."""
    one.sh(
        f"ip link add {name} type veth peer name {other_name} netns /proc/{os.getpid()}/fd/{other.fd};"
        f"ip link set {name} up"
    )
    other.sh(f"ip link set {other_name} up")
