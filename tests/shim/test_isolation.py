"""What a container sees of its host, and what it can do to it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import mounted
from tests.shim.conftest import Boxes
from vxnet.host import creation, tasks
from vxnet.model.container import Mount

pytestmark = pytest.mark.host


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the host that containers see: /tmp and /run are their own."""
    directory = Path(f"/var/tmp/vxnet-test-{os.getpid()}")
    directory.mkdir()
    yield directory
    subprocess.run(["rm", "-rf", directory], check=True)


async def run(boxes: Boxes, script: str, **spec: object) -> str:
    """What a shell says to ``script``, without its complaints."""
    box = boxes("sh", "-c", f"exec 2>/dev/null\n{script}", **spec)
    task = await box.start()
    await task.start_main()
    await task.wait()
    return box.output


async def test_hosts_files_are_read_and_not_written(boxes: Boxes, place: Path) -> None:
    (place / "file").write_text("the host's\n")
    script = f"cd {place}; cat file; echo changed >file; rm -f /etc/passwd; touch new; cat file; ls /etc/passwd new"
    assert "the host's\nchanged\n" in await run(boxes, script)
    assert (place / "file").read_text() == "the host's\n"
    assert not (place / "new").exists()
    assert Path("/etc/passwd").exists()


async def test_secrets_are_masked(boxes: Boxes, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "vxnet").mkdir()
    (place / "vxnet" / "node.key").write_text("secret")
    (place / "token").write_text("secret")
    masks = (str(place / "vxnet"), str(place / "token"), str(place / "absent"))
    monkeypatch.setattr(creation, "MASKS", (*creation.MASKS, *masks))
    assert (
        await run(boxes, f"cd {place}; ls -A vxnet; cat token; touch vxnet/x || umount vxnet || echo kept") == "kept\n"
    )


async def test_secrets_are_masked_whatever_name_they_are_bound_by(
    boxes: Boxes, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /var/run is a link to /run, and with it vxnetd's socket."""
    (place / "run" / "secrets").mkdir(parents=True)
    (place / "run" / "secrets" / "key").write_text("XYZZY")
    (place / "link").symlink_to("run")
    monkeypatch.setattr(creation, "MASKS", (*creation.MASKS, str(place / "run" / "secrets")))
    names = {"/linked": place / "link", "/roundabout": place / "link" / ".." / "run"}
    mounts = tuple(Mount(kind="bind", source=str(source), target=target) for target, source in names.items())
    box = boxes("sh", "-c", "cat /linked/secrets/key /roundabout/secrets/key; ls /linked", mounts=mounts)
    task = await box.start()
    await task.start_main()
    await task.wait()
    assert "XYZZY" not in box.output and box.output.count("No such file") == 2


async def test_masks_cover_vxnets_directories() -> None:
    assert {"/var/lib/vxnet", "/etc/vxnet", "/run/vxnet", "/var/lib/vxnet-lab", "/run/vxnet-lab"} <= set(creation.MASKS)


async def test_other_file_systems_are_read_only(boxes: Boxes, place: Path) -> None:
    """overlayfs does not show what is mounted below its lower directory."""
    with mounted(place / "a disk", "tmpfs") as mount:
        (mount / "file").write_text("on the disk\n")
        assert await run(boxes, f"cd '{mount}'; cat file; touch new || echo refused") == "on the disk\nrefused\n"
        assert sorted(path.name for path in mount.iterdir()) == ["file"]


async def test_only_own_processes_and_mounts(boxes: Boxes) -> None:
    output = await run(boxes, "echo /proc/[0-9]*; cat /proc/mounts; ls -A /tmp /run")
    assert output.startswith("/proc/1\n")
    assert "/var/lib/docker" not in output
    assert output.endswith("/run:\nlock\n\n/tmp:\n")


async def test_devices(boxes: Boxes) -> None:
    script = """
    echo gone >/dev/null; head -c 8 /dev/urandom | wc -c; echo x >/dev/full || echo full; echo y | cat /dev/stdin
    ls -A /dev; ls /dev/pts; mknod /tmp/sda b 8 0 || mknod /dev/x c 1 3 || echo none made
    """
    assert await run(boxes, script) == (
        "8\nfull\ny\n"
        "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"
        "ptmx\nnone made\n"
    )


async def test_no_power_over_the_kernel(boxes: Boxes) -> None:
    script = """
    mount -t tmpfs none /mnt || echo no mount
    umount /proc/sys || echo no umount
    echo 1 >/proc/sys/kernel/panic || echo no sysctl
    echo 1 >/proc/sysrq-trigger || echo no sysrq
    ip link set lo down || echo no network administration
    cat /proc/kcore | wc -c
    hostname other || echo no hostname
    chroot / true && echo chroot
    grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status
    """
    output = await run(boxes, script)
    assert output == (
        "no mount\nno umount\nno sysctl\nno sysrq\nno network administration\n0\nno hostname\nchroot\n"
        "CapEff:\t00000000a00425fb\nCapBnd:\t00000000a00425fb\nNoNewPrivs:\t1\n"
    )


async def test_shim_stays_out_of_reach(boxes: Boxes) -> None:
    """CVE-2019-5736: a container that makes the shim execute itself inside gets no way to write the host's file."""
    before = tasks.shim_path().read_bytes()
    box = boxes("sh", "-c", "ln -s /proc/self/exe /bin/trap; echo up; while :; do sleep 1; done")
    task = await box.start()
    await task.start_main()
    try_it = "exec 3</proc/self/exe; readlink /proc/1/exe; dd if=/dev/zero of=/proc/self/fd/3 count=1 conv=notrunc"
    await box.run_client(f"terminal.execute(S, ['sh', '-c', {try_it!r}])")
    status, output, errors = await box.run_client("terminal.execute(S, ['/bin/trap', '--version'])")
    assert status in (0, 126, 127), (output, errors)
    # While it runs the file is busy for everybody; what counts is that its mount stays read-only afterwards.
    shim = (await task.status())["shim"]
    assert os.statvfs(f"/proc/{shim}/exe").f_flag & os.ST_RDONLY
    assert tasks.shim_path().read_bytes() == before


async def test_own_network(boxes: Boxes) -> None:
    script = "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo pong; cat /etc/resolv.conf /etc/hosts"
    assert await run(boxes, script) == "lo\npong\nnameserver 127.0.0.11\n127.0.0.1 localhost\n"


async def test_ping_needs_no_capability(boxes: Boxes) -> None:
    assert (await run(boxes, "cat /proc/sys/net/ipv4/ping_group_range")).split() == ["0", "2147483647"]


async def test_port_53_is_free(boxes: Boxes) -> None:
    script = "python3 -c \"import socket; s = socket.socket(type=2); s.bind(('', 53)); print('bound')\""
    assert await run(boxes, script) == "bound\n"


async def test_cgroup(boxes: Boxes) -> None:
    if not re.search(r" cgroup2 rw\b", Path("/proc/self/mounts").read_text()):
        pytest.skip("this host has no cgroup v2 tree that can be written to")
    box = boxes("sh", "-c", "cat /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs")
    task = await box.start()
    cgroup = (await task.status())["cgroup"]
    assert Path(cgroup, "cgroup.procs").read_text().split() == [str(task.pid)]
    await task.start_main()
    await task.wait()
    assert "0::/\n1\n" in box.output, "the container's cgroup is the root of what it sees"
    assert not Path(cgroup).exists()


async def test_writable_layer_in_memory_where_the_disk_is_an_overlay(boxes: Boxes, place: Path) -> None:
    """As when the daemon runs in a Docker container."""
    for name in ("lower", "upper", "work"):
        (place / name).mkdir()
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    with mounted(place / "state", "overlay", options) as state:
        box = boxes("sh", "-c", "echo written >/file; cat /file")
        box.directory = state / "box"
        task = await box.start()
        assert task.root == "tmpfs"
        await task.start_main()
        assert (await task.wait()).status == 0
        assert box.output == "written\n"
        await task.destroy()
