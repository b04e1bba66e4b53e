"""Linux capabilities by name: what ``--cap-add`` and ``--cap-drop`` make of Docker's default set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vxnet.model.errors import CallerError

NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
"""At their numbers (linux/capability.h)."""
DEFAULT: Final = frozenset(
    {
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
        *("NET_RAW", "SYS_CHROOT", "AUDIT_WRITE", "SETFCAP"),
    }
)
"""Docker's without MKNOD."""


def capabilities(add: Iterable[str] = (), drop: Iterable[str] = ()) -> frozenset[str]:
    """Docker's rule: ``ALL`` stands for every one, a name may begin with ``CAP_``, and of one that is added and dropped
    the adding counts, unless only ``ALL`` was added. Raises :class:`CallerError` for an unknown name.
    """
    added, dropped = _names(add), _names(drop)
    base = frozenset(NAMES) if "ALL" in added else frozenset() if "ALL" in dropped else DEFAULT
    return (base - dropped) | (added - {"ALL"})


def mask(names: Iterable[str]) -> int:
    """As the kernel counts: bit n is capability n."""
    return sum(1 << NAMES.index(name) for name in set(names))


def _names(texts: Iterable[str]) -> frozenset[str]:
    found = set()
    for text in texts:
        name = text.upper().removeprefix("CAP_")
        if name not in NAMES and name != "ALL":
            raise CallerError(f'there is no capability "{text}"', hint="`man 7 capabilities` lists them")
        found.add(name)
    return frozenset(found)
