"""libvirt in namespaces of its own, for Vagrant, and a box for it to start from.

::

    its namespaces (network, mounts, processes)
      virtlogd, libvirtd   what they keep lies under one directory, instead of in /etc, /var and /run
      vagrant              run in there, with a home under the same directory
      qemu                 as many as Vagrant wants, on the bridges that libvirt makes

When the first process of its process namespace ends, the kernel ends the others, and all the rest goes with them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

from tests.vm.image import Image
from tests.vm.machine import accelerator

READY_S = 30.0
KEPT = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/run")
"""What libvirt's daemons write to."""
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""
BOX = """\
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.provider :libvirt do |machine|
    machine.driver = "%(driver)s"
    machine.machine_type = "q35"
    machine.kernel = File.expand_path("vmlinuz", __dir__)
    machine.initrd = File.expand_path("initrd", __dir__)
    machine.cmd_line = "root=/dev/vda rw net.ifnames=0 mitigations=off console=ttyS0 systemd.wants=ssh.service"
    machine.management_network_mode = "none"
    machine.management_network_address = "10.0.2.0/24" # as VirtualBox has it
%(more)s  end
end
"""
EMULATED = """\
    machine.cpu_mode = "custom"
    machine.cpu_model = "Nehalem"
"""


def box(image: Image, made: Path) -> None:
    """Write what ``vagrant box add`` takes."""
    work = made.parent / "box"
    work.mkdir()
    emulated = accelerator() == "tcg"
    told = BOX % {"driver": "qemu" if emulated else "kvm", "more": EMULATED if emulated else ""}
    (work / "Vagrantfile").write_text(told)
    size = image.disk.stat().st_size >> 30
    (work / "metadata.json").write_text(json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": size}))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image.disk), str(work / "box.img")]
    subprocess.run(convert, check=True)
    shutil.copy(image.kernel, work / "vmlinuz")
    shutil.copy(image.initrd, work / "initrd")
    with tarfile.open(made, "w") as tar:
        for file in sorted(work.iterdir()):
            tar.add(file, file.name)
    shutil.rmtree(work)


_NAMESPACES = (("net", "net"), ("mount", "mnt"), ("pid", "pid"))


class Hypervisor:
    """libvirt's daemons. ``directory``: must be there and empty."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        binds = []
        for path in KEPT:
            own = directory / path.strip("/").replace("/", "-")
            if path == "/etc/libvirt":
                shutil.copytree(path, own)
            else:
                own.mkdir()
            binds.append(f"mkdir -p {path}; mount --bind {own} {path}")
        (directory / "etc-libvirt/qemu.conf").write_text(QEMU_CONF)
        (directory / "etc-libvirt/libvirtd.conf").write_text('auth_unix_rw = "none"\n')
        for part in ("images", "boot", "dnsmasq"):
            (directory / "var-lib-libvirt" / part).mkdir()
        (directory / "run/lock").mkdir()
        script = f"{'; '.join(binds)}; mount -t sysfs sysfs /sys; ip link set lo up; virtlogd -d; libvirtd"
        self._log = (directory / "log").open("wb")
        unshare = [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-ec",
            script,
        ]
        self._outer = subprocess.Popen(unshare, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            assert self._outer.poll() is None, f"libvirtd: {self.said()}"
            done = self.run(["virsh", "-c", "qemu:///system", "version"], check=False)
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, f"no libvirtd within {READY_S:g} s: {done.stdout}{self.said()}"
            time.sleep(0.2)

    def said(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-3000:]

    def run(
        self, argv: list[str], *, cwd: Path | None = None, timeout_s: float = 60.0, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A program among them; its errors are in its output. AssertionError with that when it fails."""
        done = subprocess.run(
            self.inside(argv, cwd),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-6000:]}\n{self.said()}"
        return done

    def inside(self, argv: list[str], cwd: Path | None = None) -> list[str]:
        """What runs ``argv`` among them."""
        namespaces = [f"--{kind}=/proc/{self._first()}/ns/{name}" for kind, name in _NAMESPACES]
        return ["nsenter", *namespaces, f"--wd={cwd or '/'}", *argv]

    def _first(self) -> int:
        """The first process of its namespace, as it is called here."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        deadline = time.monotonic() + READY_S
        while not (found := children.read_text().split()):
            assert time.monotonic() < deadline, "unshare did not start anything"
            time.sleep(0.01)
        return int(found[0])

    def close(self) -> None:
        self._outer.kill()  # --kill-child: its namespace goes with it
        self._outer.wait()
        self._log.close()
