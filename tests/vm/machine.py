"""One virtual machine: started, spoken to, harmed, and gone at the end.

::

    namespace of the underlay (a lab's, or a Switch's)
      bridge "underlay" ── tap vm1 ── eth1 of vm1, 192.168.56.31
                                      eth0 of vm1: QEMU's user network, 10.0.2.15 on every machine, leads nowhere
    directory: disk (copy on write), console (its serial line), agent and qmp (sockets)

Commands go through the QEMU guest agent over a virtual serial line: it answers before anything else of the machine
does, and also when its network is cut.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.vm.image import Image
from vxnet.host.netns import CLONE_NEWNET
from vxnet.lab import namespaces
from vxnet.lab.process import Process

BOOT_S = 300.0
"""Until the agent answers; 12 s for one machine under emulation on an idle core, 40 s for three at once, minutes beside
much other work."""
STARTS = 3
"""QEMU was seen to end by itself once in some dozens of starts."""
ANSWER_S = 20.0
AGENT_TRIES = 5
MEMORY_MB = 768
TRANSLATED_MB = 256
"""QEMU's cache of translated code, which would otherwise grow to 1 GiB a machine."""


class GuestError(AssertionError):
    """The machine did not do what was asked."""


class Done(NamedTuple):
    status: int
    out: str
    err: str


def accelerator() -> str:
    """``kvm`` where the processor can run guests itself, else ``tcg``. A /dev/kvm alone does not say so: in some clouds
    it is there and a guest hangs when it switches to long mode. ``VXNET_VM_ACCEL`` chooses."""
    if chosen := os.environ.get("VXNET_VM_ACCEL"):
        return chosen
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return "kvm" if {"vmx", "svm"} & set(flags.split()) and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


class Vm:
    """``number`` makes name, addresses and machine id. ``switch``: a process in the network namespace of a bridge
    called "underlay"."""

    def __init__(self, number: int, image: Image, directory: Path, switch: Process, media: Path) -> None:
        self.name = f"vm{number}"
        self.address = f"192.168.56.{30 + number}"
        self._number = number
        self._image = image
        self._directory = directory
        self._switch = switch
        self._media = media
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._ids = itertools.count(1)
        self._accelerator = accelerator()
        directory.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------------ power

    def start(self) -> None:
        """Boot it, with the disk that it had or a new one, until systemd says that it is up."""
        disk = self._directory / "disk.qcow2"
        if not disk.exists():
            _host(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self._image.disk), str(disk)])
        for attempt in range(1, STARTS + 1):
            try:
                self._launch()
                self.wait_up()
                return
            except GuestError as error:
                self.kill()
                if attempt == STARTS:
                    raise GuestError(f"{self.name} did not come up: {error}\n{self.console()[-3000:]}") from None
                self._accelerator = "tcg"  # what KVM promised and did not keep

    def _launch(self) -> None:
        self._in_switch(
            f"ip link show {self.name} >/dev/null 2>&1 || ip tuntap add {self.name} mode tap;"
            f" ip link set {self.name} master underlay up"
        )
        console = self._directory / "console"
        if console.exists():
            console.rename(self._directory / "console.old")
        for name in ("agent", "qmp"):
            (self._directory / name).unlink(missing_ok=True)
        mac = f"52:54:00:a8:38:{30 + self._number:02x}"
        tcg = f"tcg,thread=multi,tb-size={TRANSLATED_MB}"
        argv = [
            *("nsenter", f"--net=/proc/{self._switch.pid}/ns/net", "qemu-system-x86_64"),
            *("-accel", "kvm" if self._accelerator == "kvm" else tcg),
            *("-cpu", "host" if self._accelerator == "kvm" else "max", "-machine", "q35", "-smp", "1"),
            *("-m", str(MEMORY_MB), "-nodefaults", "-display", "none", "-name", self.name),
            *("-kernel", str(self._image.kernel), "-append", self._command_line()),
            *("-drive", f"file={self._directory}/disk.qcow2,if=none,id=disk,cache=unsafe,discard=unmap"),
            *("-device", "nvme,drive=disk,serial=disk"),
            *("-drive", f"file={self._media},if=none,id=media,format=raw,readonly=on"),
            *("-device", "nvme,drive=media,serial=media"),
            *("-netdev", "user,id=nat,restrict=on", "-device", "virtio-net-pci,netdev=nat,romfile="),
            *("-netdev", f"tap,id=lan,ifname={self.name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=lan,id=lan0,mac={mac},romfile="),
            *("-serial", f"file:{console}", "-qmp", f"unix:{self._directory}/qmp,server=on,wait=off"),
            *("-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-chardev", f"socket,id=agent,path={self._directory}/agent,server=on,wait=off"),
            *("-device", "virtio-rng-pci"),
        ]
        with (self._directory / "qemu").open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _command_line(self) -> str:
        machine_id = hashlib.sha256(f"vxnet-{self.name}".encode()).hexdigest()[:32]
        return (
            "console=ttyS0 root=/dev/nvme0n1 rw net.ifnames=0 panic=10 systemd.show_status=no quiet mitigations=off"
            # An emulated timer that comes late is no broken one.
            " no_timer_check"
            f" systemd.hostname={self.name} systemd.machine_id={machine_id}"
            f" ip={self.address}:::255.255.255.0::eth1:none"
        )

    def wait_up(self, timeout_s: float = BOOT_S) -> None:
        """Until the agent answers and systemd has started what it was to start."""
        script = "systemctl is-system-running --wait || systemctl --failed"
        self.wait(lambda: self.sh(script, timeout_s=timeout_s), "boot")

    def reboot(self) -> None:
        """As an operator does it; until it runs again."""
        before = self.boot_id()
        with contextlib.suppress(GuestError):  # the agent may go before it has answered
            self.sh("systemctl reboot --no-block")
        self._hang_up()
        self.wait(lambda: self.boot_id() != before, "reboot", timeout_s=2 * BOOT_S)
        self.wait_up()

    def boot_id(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id").strip()

    def kill(self) -> None:
        """As when the power fails. :meth:`start` finds the disk as it was."""
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        """What it wrote on its serial line since it was started, the beginning of this text as QEMU's own words."""
        texts = []
        for name in ("qemu", "console"):
            with contextlib.suppress(FileNotFoundError):
                texts.append((self._directory / name).read_text(errors="replace"))
        return "".join(texts)

    # ------------------------------------------------------------------------------------------------ commands

    def run(self, *argv: str, stdin: str = "", timeout_s: float = 60.0) -> Done:
        """A program's status and output. Raises :class:`GuestError` when the machine does not answer in time."""
        arguments: dict[str, Any] = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"],
            "capture-output": True,
        }
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin.encode()).decode()
        deadline = time.monotonic() + timeout_s
        pid = self._ask("guest-exec", arguments)["pid"]
        pause_s = 0.02
        while True:
            status = self._ask("guest-exec-status", {"pid": pid})
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise GuestError(f"{self.name}: {' '.join(argv)!r} runs for more than {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)
        out, err = (base64.b64decode(status.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data"))
        return Done(int(status.get("exitcode", 128 + status.get("signal", 0))), out, err)

    def sh(self, script: str, *, timeout_s: float = 60.0) -> str:
        """What a shell script prints; AssertionError with its errors when it fails."""
        done = self.run("/bin/sh", "-ec", script, timeout_s=timeout_s)
        if done.status != 0:
            raise GuestError(f"{self.name}: {script!r} ended with {done.status}: {done.err.strip()}\n{done.out}")
        return done.out

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = BOOT_S) -> None:
        """Ask until it is true; a machine that does not answer, or a command that fails, is a no."""
        deadline = time.monotonic() + timeout_s
        last: object = None
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise GuestError(f"{self.name} is not running")
            try:
                last = condition()
                if last:
                    return
            except (GuestError, OSError) as error:
                last = error
                self._hang_up()
            time.sleep(0.5)
        raise GuestError(f"{self.name}: no {what} within {timeout_s:g} s: {last}")

    def _ask(self, command: str, arguments: dict[str, Any]) -> Any:
        agent = self._agent
        if agent is None:
            agent = self._agent = self._connect()
        try:
            agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = json.loads(_line(agent))
        except (OSError, ValueError) as error:
            self._hang_up()
            raise GuestError(f"{self.name}'s agent: {error}") from None
        if "error" in answer:
            raise GuestError(f"{self.name}'s agent on {command}: {answer['error']}")
        return answer["return"]

    def _connect(self) -> socket.socket:
        """A connection on which nothing of an earlier conversation is left."""
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            agent.connect(str(self._directory / "agent"))
            for _ in range(AGENT_TRIES):
                # What is sent before the agent has noticed that the client is another one is lost.
                if self._greets(agent):
                    agent.settimeout(ANSWER_S)
                    return agent
        except OSError as error:
            agent.close()
            raise GuestError(f"{self.name}'s agent does not answer: {error}") from None
        agent.close()
        raise GuestError(f"{self.name}'s agent does not answer")

    def _greets(self, agent: socket.socket) -> bool:
        number = time.monotonic_ns() % (1 << 31)
        # 0xff makes the agent forget half a command that somebody left.
        agent.settimeout(2.0)
        agent.sendall(b"\xff" + json.dumps({"execute": "guest-sync", "arguments": {"id": number}}).encode() + b"\n")
        with contextlib.suppress(TimeoutError):
            while True:
                with contextlib.suppress(ValueError):
                    if json.loads(_line(agent).lstrip(b"\xff")).get("return") == number:
                        return True
        return False

    def _hang_up(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None

    # ------------------------------------------------------------------------------------------------ harm

    def qmp(self, command: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.settimeout(20.0)
            monitor.connect(str(self._directory / "qmp"))
            lines = monitor.makefile("rb")  # events come between answers, several at once
            lines.readline()  # its greeting
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                monitor.sendall(json.dumps({"execute": name, "arguments": values}).encode() + b"\n")
                while "event" in (answer := json.loads(lines.readline())):
                    pass
                if "error" in answer:
                    raise GuestError(f"{self.name}: {name}: {answer['error']}")
            return answer["return"]

    def cut(self) -> None:
        """Pull the cable of eth1: its carrier goes."""
        self.qmp("set_link", name="lan0", up=False)

    def heal(self) -> None:
        self.qmp("set_link", name="lan0", up=True)

    def pause(self) -> None:
        """All its clocks stand still."""
        self.qmp("stop")

    def resume(self) -> None:
        self.qmp("cont")

    def _in_switch(self, script: str) -> None:
        namespaces.in_host(self._switch, "underlay", lambda: _host(["sh", "-ec", script]), CLONE_NEWNET)


def _line(stream: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        got = stream.recv(65536)
        if not got:
            raise ConnectionResetError("it hung up")
        data += got
    return data


def _host(argv: list[str]) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}"
