"""Capabilities and system calls: what a container may, as Docker's, and what can be given and taken."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes
from vxnet.host import seccomp
from vxnet.model.capability import DEFAULT, NAMES, capabilities, mask
from vxnet.model.errors import CallerError

CALLS = r"""
import ctypes, errno, json, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_ulong(one & 0xFFFFFFFFFFFFFFFF) for one in arguments))
    if number == 56 and result == 0:
        os._exit(0)  # the child of a clone that was let through
    return 0 if result >= 0 else ctypes.get_errno()
assert platform.machine() == "x86_64"
found = {name: call(*given) for name, given in json.loads(sys.argv[1]).items()}
print(json.dumps(found))
"""
X86_64 = {
    "unshare": (272, 0),
    "setns": (308, -1, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, -3, 0),
    "bpf": (321, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "syslog": (103, 10, 0, 0),
    "clone3": (435, 0, 0),
    "clone new user": (56, 0x10000000, 0, 0, 0, 0),
    "socket vsock": (41, 40, 1, 0),
    "personality no randomization": (135, 0x0040000),
    "newer than known": (451 + 20, 0),
    "x32": (0x40000000 + 39,),
    # and what is allowed
    "personality": (135, 0xFFFFFFFF),
    "personality 32": (135, 0x8),
    "getpid": (39,),
    "socket inet": (41, 2, 2, 0),
    "ptrace": (101, 0, 0, 0, 0),
    "chroot": (161, 0),
}
HOST = int(re.findall(r"CapBnd:\t(\w+)", Path("/proc/self/status").read_text())[0], 16)
"""Capabilities that this machine's root has."""


async def calls(boxes: Boxes, **spec: object) -> dict[str, str]:
    """Name -> the error's name, ``""`` for none."""
    box = boxes("python3", "-c", CALLS, json.dumps(X86_64), **spec)
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0, box.log
    return {name: errno.errorcode[error] if error else "" for name, error in json.loads(box.output).items()}


@pytest.mark.host
async def test_calls_of_a_plain_container(boxes: Boxes) -> None:
    assert await calls(boxes) == {
        "unshare": "EPERM",
        "setns": "EPERM",
        "mount": "EPERM",
        "keyctl": "EPERM",
        "bpf": "EPERM",
        "io_uring_setup": "EPERM",
        "syslog": "EPERM",
        "clone3": "ENOSYS",
        "clone new user": "EPERM",
        "socket vsock": "EPERM",
        "personality no randomization": "EPERM",
        "newer than known": "ENOSYS",
        "x32": "ENOSYS",
        "personality": "",
        "personality 32": "",
        "getpid": "",
        "socket inet": "",
        "ptrace": "",
        "chroot": "EFAULT",
    }


@pytest.mark.host
async def test_a_capability_gives_its_calls_back(boxes: Boxes) -> None:
    found = await calls(boxes, cap_add=("SYS_ADMIN",), cap_drop=("CAP_SYS_CHROOT",))
    assert {name: found[name] for name in ("unshare", "setns", "mount", "chroot", "keyctl", "io_uring_setup")} == {
        "unshare": "",
        "setns": "EBADF",
        "mount": "EFAULT",
        "chroot": "EPERM",
        "keyctl": "EPERM",
        "io_uring_setup": "EPERM",
    }


@pytest.mark.host
async def test_unconfined(boxes: Boxes) -> None:
    found = await calls(boxes, seccomp=False)
    assert (found["unshare"], found["clone3"], found["bpf"]) == ("", "EINVAL", "EINVAL")


@pytest.mark.host
async def test_exec_is_under_the_filter_too(boxes: Boxes) -> None:
    box = boxes("sleep", "1000")
    task = await box.start()
    await task.start_main()
    status, output, _ = await box.run_client("terminal.execute(S, ['grep', '-h', 'Seccomp:', '/proc/self/status'])")
    assert (status, output) == (0, b"Seccomp:\t2\n")


@pytest.mark.host
async def test_every_capability_can_be_given_and_taken(boxes: Boxes) -> None:
    for spec, wanted in (
        ({"cap_add": ("net_admin",)}, DEFAULT | {"NET_ADMIN"}),
        ({"cap_drop": ("ALL",)}, frozenset()),
        ({"cap_drop": ("ALL",), "cap_add": ("CAP_CHOWN",)}, frozenset({"CHOWN"})),
        ({"cap_add": ("ALL",), "cap_drop": ("MKNOD",)}, frozenset(NAMES) - {"MKNOD"}),
    ):
        box = boxes("grep", "-E", "Cap(Eff|Bnd|Prm|Inh|Amb)", "/proc/self/status", **spec)
        task = await box.start()
        await task.start_main()
        assert (await task.wait()).status == 0
        sets = dict(line.split(":\t") for line in box.output.splitlines())
        has = mask(wanted) & HOST  # a test in a container has not all of them itself
        assert [int(sets[f"Cap{one}"], 16) for one in ("Eff", "Bnd", "Prm", "Inh", "Amb")] == [has, has, has, 0, 0]


@pytest.mark.host
async def test_devices_that_can_be_made_cannot_be_opened(boxes: Boxes) -> None:
    script = """
    exec 2>/dev/null
    for place in /dev /tmp /run /root /dev/shm; do
        mknod $place/node c 1 3 && echo made
        true <$place/node && echo opened in $place
    done
    head -c 4 /dev/zero | wc -c; echo x | tee /dev/stderr >/dev/null; ls /dev
    """
    box = boxes("sh", "-c", script, cap_add=("MKNOD",))
    task = await box.start()
    await task.start_main()
    await task.wait()
    assert "opened" not in box.output
    assert box.output.startswith("made\nmade\nmade\nmade\nmade\n4\n")
    assert "ptmx" in box.output


def test_rules_of_capabilities() -> None:
    assert capabilities() == DEFAULT
    assert mask(capabilities()) == 0xA00425FB
    assert capabilities(drop=["NET_RAW"]) == DEFAULT - {"NET_RAW"}
    assert capabilities(["ALL"]) == frozenset(NAMES)
    assert capabilities(["NET_RAW"], ["NET_RAW"]) == DEFAULT
    with pytest.raises(CallerError, match='no capability "EVERYTHING"'):
        capabilities(["EVERYTHING"])


def test_a_filter_is_made_once() -> None:
    descriptor = seccomp.filter_file(capabilities())
    assert seccomp.filter_file(capabilities()) == descriptor
    assert seccomp.denied(frozenset(NAMES)) < seccomp.denied(DEFAULT)
    assert {name for names in seccomp.ALLOWED_WITH.values() for name in names} <= set(seccomp.DENIED)
