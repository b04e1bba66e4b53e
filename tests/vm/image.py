"""The disk and the kernel that all virtual machines start from: built once, kept by what went into it.

One pass of mmdebstrap without a kernel package: the cloud kernel has NVMe and ext4 built in, so its unpacked modules
are enough and no initrd is needed. Name, machine id and address of a machine come on the kernel's command line, so one
image serves all. Cold about 40 s (and 27 MB for the kernel), afterwards nothing.

libvirt knows no NVMe disk: for its machines there is an initrd with the modules of a virtio one, and an account as
Vagrant wants it, with the key that everybody has.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vxnet-vm"
SUITE = "bookworm"
KEEP_DAYS = 14
"""An image that is older is built again: Debian's updates are a part of what is tested."""

PACKAGES = (
    # a machine
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "qemu-guest-agent", "procps", "openssh-server", "sudo"),
    # what vxnet's package depends on, so that `dpkg -i` finds it there
    *("python3", "nftables", "iproute2", "libseccomp2"),
    # what a manager's own etcd is
    "etcd-server",
    # for the initrd
    "busybox-static",
    # what its tests look with
    *("iputils-ping", "iperf3", "curl", "tcpdump", "bind9-dnsutils"),
)

CUSTOMIZE = r"""
set -eu
root=$1

# The kernel, unpacked: installing it would want an initramfs and half a minute.
mkdir "$root/tmp/k"
chmod 777 "$root/tmp/k"
chroot "$root" sh -euc '
    cd /tmp/k
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-6[^ ]*\)/\1/p" | head -n 1)
    apt-get download -qq "$kernel"
    dpkg-deb -x linux-image-*.deb unpacked
    mv unpacked/boot/vmlinuz-* /boot/vmlinuz
    mv unpacked/lib/modules /usr/lib/
    depmod "$(ls /usr/lib/modules)"
'
rm -r "$root/tmp/k"

# eth0 is every virtual machine's NAT card with the same address, as VirtualBox has it; eth1 is on the command line.
cat >"$root/etc/systemd/network/eth0.network" <<.
[Match]
Name=eth0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
[DHCPv4]
UseDNS=no
.
mkdir -p "$root/etc/systemd/system/systemd-networkd-wait-online.service.d"
cat >"$root/etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf" <<.
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
.
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
echo '# There is nobody to ask.' >"$root/etc/resolv.conf"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
: >"$root/etc/machine-id"
echo '/dev/nvme1n1 /media ext4 ro,nofail,x-systemd.device-timeout=60 0 0' >"$root/etc/fstab"

link() { ln -sf "$1" "$root/etc/systemd/system/$2"; }
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
link /lib/systemd/system/systemd-networkd.service multi-user.target.wants/systemd-networkd.service
mkdir -p "$root/etc/systemd/system/sysinit.target.wants" "$root/etc/systemd/system/qemu-guest-agent.service.d"
link /lib/systemd/system/systemd-network-generator.service sysinit.target.wants/systemd-network-generator.service
printf '[Service]\nLogLevelMax=warning\n' >"$root/etc/systemd/system/qemu-guest-agent.service.d/quiet.conf"
# A machine that lives for minutes needs no housekeeping; each of these costs an emulated second or more.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-tmpfiles-clean.timer systemd-timesyncd.service systemd-pstore.service getty@tty1.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-journal-flush.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount modprobe@.service \
    sys-fs-fuse-connections.mount systemd-logind.service proc-sys-fs-binfmt_misc.automount systemd-binfmt.service \
    console-getty.service etcd.service; do
    link /dev/null $unit
done
rm "$root/etc/systemd/system/multi-user.target.wants/ssh.service" # with systemd.wants=ssh.service it starts
chroot "$root" useradd -m -s /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
mkdir -m 700 "$root/home/vagrant/.ssh"
cp "$2" "$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown -R vagrant: /home/vagrant/.ssh
mkdir -p "$root/etc/modprobe.d"
printf 'blacklist %s\n' psmouse pcspkr i2c_piix4 drm bochs >"$root/etc/modprobe.d/vm.conf"
"""


INIT = """#!/bin/busybox sh
mount() { busybox mount "$@"; }
mount -t devtmpfs dev /dev
for module in %s; do busybox insmod /$module; done
while ! mount -t ext4 /dev/vda /root; do busybox sleep 0.1; done
exec busybox switch_root /root /sbin/init
"""
MODULES = (
    *(f"virtio/{name}" for name in ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev")),
    *("virtio/virtio_pci", "block/virtio_blk"),
)
"""In the order in which they need each other."""


class Image(NamedTuple):
    disk: Path
    kernel: Path
    initrd: Path
    """Of machines whose disk is a virtio one."""


def ensure() -> Image:
    """The image, built if there is none of this content or it is too old. Raises CalledProcessError with its log."""
    content = hashlib.sha256(repr((SUITE, PACKAGES, CUSTOMIZE, INIT, MODULES)).encode()).hexdigest()[:16]
    place = CACHE / content
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = Image(place / "disk.ext4", place / "vmlinuz", place / "initrd")
        if image.kernel.exists() and time.time() - image.kernel.stat().st_mtime < KEEP_DAYS * 86400:
            return image
        for old in CACHE.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        work = CACHE / "work"
        work.mkdir()
        _build(work)
        work.rename(place)
        return image


def _build(work: Path) -> None:
    hook = work / "customize"
    hook.write_text(CUSTOMIZE)
    root = work / "root"
    options = [
        *("--variant=minbase", "--mode=root", "--quiet", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man")),
        "--aptopt=Acquire::Languages none",
        f'--customize-hook=sh {hook} "$1" {_vagrants_key()}',
    ]
    _run(["mmdebstrap", *options, SUITE, str(root)])
    _initrd(root, work / "initrd")
    disk = work / "disk.ext4"
    with disk.open("wb") as file:
        file.truncate(3 << 30)
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(disk)])
    (root / "boot/vmlinuz").rename(work / "vmlinuz")
    (work / "vmlinuz").touch()
    shutil.rmtree(root)
    hook.unlink()


def _vagrants_key() -> Path:
    """The public half of what Vagrant first comes with."""
    found = next(Path("/usr/share/rubygems-integration").glob("*/gems/vagrant-*/keys/vagrant.pub"), None)
    assert found is not None, "vagrant is not installed"
    return found


def _initrd(root: Path, initrd: Path) -> None:
    drivers = next((root / "usr/lib/modules").glob("*")) / "kernel/drivers"
    modules = {Path(name).name: (drivers / f"{name}.ko").read_bytes() for name in MODULES}
    busybox = (root / "bin/busybox").read_bytes()
    data = b"".join(_entry(name, 0o40755, b"") for name in ("bin", "dev", "root"))
    data += _entry("init", 0o100755, (INIT % " ".join(modules)).encode()) + _entry("bin/busybox", 0o100755, busybox)
    data += b"".join(_entry(name, 0o100644, content) for name, content in modules.items())
    initrd.write_bytes(data + _entry("TRAILER!!!", 0, b""))


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """Of a cpio archive, its newc format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    fields = (1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def files(folder: Path, disk: Path) -> None:
    """A disk with ``folder``'s files, which a machine finds under /media."""
    octets = sum(path.stat().st_size for path in folder.rglob("*"))
    with disk.open("wb") as file:
        file.truncate(octets * 5 // 4 + (8 << 20))
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(folder), str(disk)])


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, argv)
        error.add_note(done.stdout[-4000:])
        raise error
