"""The etcd member of this host: a process of its own, which outlives the daemon that started it.

::

    /var/lib/vxnet/etcd/   data/  what etcd keeps      pid  of the process      log  what it says
                           ca.crt  member.crt  member.key   PEM
                           revoked.crl   DER; etcd reads it, as the certificate, at every new connection
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vxnet.host import systemd
from vxnet.model.errors import HostError
from vxnet.model.store import CLIENT_PORT, PEER_PORT, etcd_url

UNIT = "vxnet-etcd.service"
STOP_S = 10.0
_LIST = "revoked.crl"
KEPT_REVISIONS = 10_000
"""Behind that a watch gets a snapshot; older ones are compacted away every five minutes."""
LOG_LIMIT = 8 << 20
"""Octets after which the log is begun anew, at a start."""
_POLL_S = 0.02
_NOT_LOADED = 5
"""systemctl's status for a unit that is not there: a member that has ended is collected, and so stopped already."""


def argv(
    directory: Path, name: str, address: str, members: Mapping[str, str], *, new: bool, token: str, listed: bool
) -> list[str]:
    """etcd with mTLS on both its ports; ``members``: their peer URLs by name. ``new``: nobody has begun yet.
    ``listed``: there is a list of revoked certificates; told of one that it cannot read, etcd lets nobody in.
    """
    tls = {"cert-file": "member.crt", "key-file": "member.key", "trusted-ca-file": "ca.crt"}
    options = {
        "name": name,
        "data-dir": str(directory / "data"),
        "listen-client-urls": etcd_url(address, CLIENT_PORT),
        "advertise-client-urls": etcd_url(address, CLIENT_PORT),
        "listen-peer-urls": etcd_url(address, PEER_PORT),
        "initial-advertise-peer-urls": etcd_url(address, PEER_PORT),
        "initial-cluster": ",".join(f"{member}={place}" for member, place in members.items()),
        "initial-cluster-state": "new" if new else "existing",
        "initial-cluster-token": token,
        "auto-compaction-mode": "revision",
        "auto-compaction-retention": str(KEPT_REVISIONS),
        "logger": "zap",
        "log-level": "error",
        **{option: str(directory / file) for option, file in tls.items()},
        **{f"peer-{option}": str(directory / file) for option, file in tls.items()},
        **{f"{port}-crl-file": str(directory / _LIST) for port in ("client", "peer") if listed},
    }
    flags = ["--client-cert-auth", "--peer-client-cert-auth"]
    return ["etcd", *flags, *(f"--{option}={value}" for option, value in options.items())]


class EtcdProcess:
    """All methods block, and raise :class:`HostError`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def has_data(self) -> bool:
        return (self.directory / "data" / "member").is_dir()

    def prepare(self, ca: bytes, certificate: bytes, key: bytes, revoked: bytes) -> None:
        """Its certificates, PEM, and the list of those that are refused, DER; empty: there is none yet."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.directory / "data").mkdir(mode=0o700, exist_ok=True)
            for name, content in (("ca.crt", ca), ("member.crt", certificate), ("member.key", key)):
                path = self.directory / name
                path.touch(mode=0o600)
                path.write_bytes(content)
        except OSError as error:
            raise HostError(f"cannot write in {self.directory}: {error.strerror}") from error
        if revoked:
            self.refuse(revoked)

    def refuse(self, revoked: bytes) -> None:
        """Connections from now on with certificates on this list. One that is there is whole at any time."""
        try:
            fresh = self.directory / f"{_LIST}.new"
            fresh.write_bytes(revoked)
            fresh.replace(self.directory / _LIST)
        except OSError as error:
            raise HostError(f"cannot write in {self.directory}: {error.strerror}") from error

    def start(self, arguments: Sequence[str]) -> None:
        """Unless it runs."""
        if self.pid() is not None:
            return
        program = shutil.which(arguments[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")
        if program is None:
            raise HostError("etcd is not installed on this host", hint="apt-get install etcd-server")
        if systemd.runs_daemon():
            # A unit of its own: the daemon's would end it with the daemon.
            unit = [f"--unit={UNIT}", "--slice=vxnet.slice", "--collect", "--property=Restart=on-failure"]
            errors = f"--property=StandardError=append:{self.directory / 'log'}"
            _systemd(["systemd-run", "--quiet", *unit, errors, "--", program, *arguments[1:]])
            return
        try:
            log = os.open(self.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with open(log, "wb") as output:
                if os.fstat(log).st_size > LOG_LIMIT:
                    os.truncate(log, 0)
                process = subprocess.Popen(
                    [program, *arguments[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    start_new_session=True,
                )
            (self.directory / "pid").write_text(f"{process.pid}\n")
        except OSError as error:
            raise HostError(f"etcd cannot be started: {error.strerror}") from error
        self._child = process

    def pid(self) -> int | None:
        """Of the process, if it lives: also of one that an earlier daemon started."""
        if self._child is not None:
            self._child.poll()  # or a dead one would look like a live one
        if systemd.runs_daemon():
            shown = _systemd(["systemctl", "show", "--property=MainPID", "--value", UNIT]).strip()
            return int(shown) or None if shown.isdecimal() else None
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.directory / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"--data-dir={self.directory / 'data'}".encode() in words:
                return pid
        return None

    def refuses(self) -> bool:
        """Whether the process that runs looks at the list of :meth:`refuse`: one that was started before there was one,
        by an earlier version, does not.
        """
        wanted = f"={self.directory / _LIST}".encode()
        with contextlib.suppress(OSError):
            return any(word.endswith(wanted) for word in Path(f"/proc/{self.pid()}/cmdline").read_bytes().split(b"\0"))
        return False

    def stop(self) -> None:
        if systemd.runs_daemon():
            _systemd(["systemctl", "stop", UNIT], or_status=_NOT_LOADED)
            return
        deadline = time.monotonic() + STOP_S
        number = signal.SIGTERM
        while (pid := self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(_POLL_S)
            if time.monotonic() > deadline:
                number = signal.SIGKILL

    def wipe(self) -> None:
        """After its end: nothing of it stays."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / "log").read_text(errors="replace").strip().splitlines()
            # Where it gave up in panic, the stack comes after the reason.
            words = [line for line in lines if line.startswith("panic: ")] or lines
            return words[-1][-400:] if words else ""
        return ""


def _systemd(command: Sequence[str], or_status: int = 0) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_S * 3, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{command[0]} cannot be used: {error}") from error
    if done.returncode not in (0, or_status):
        raise HostError(f"{command[0]} refuses: {done.stderr.strip()}", hint=f"see `systemctl status {UNIT}`")
    return done.stdout
