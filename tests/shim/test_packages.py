"""``apt-get install`` inside a container leaves the host as it was."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes
from vxnet.model.container import Mount

CONTROL = """\
Package: vxnet-probe
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: what a test installs
"""
SCRIPT = """
set -e
apt-get install -y /srv/vxnet-probe.deb >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
vxnet-probe
id vxnet-probe-user >/dev/null
dpkg -s vxnet-probe | grep ^Status
"""


def state_of_host() -> dict[str, str]:
    """What a package manager would change."""
    files = ("/var/lib/dpkg/status", "/etc/passwd", "/etc/group", "/etc/shadow", "/var/log/dpkg.log")
    there = [Path(name) for name in files if Path(name).exists()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


@pytest.mark.host
async def test_the_host_stays_as_it_was(boxes: Boxes, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(CONTROL)
    (package / "DEBIAN" / "postinst").write_text("#!/bin/sh\nset -e\nuseradd --system vxnet-probe-user\n")
    (package / "DEBIAN" / "postinst").chmod(0o755)
    (package / "usr" / "bin").mkdir(parents=True)
    (package / "usr" / "bin" / "vxnet-probe").write_text("#!/bin/sh\necho installed\n")
    (package / "usr" / "bin" / "vxnet-probe").chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(package), str(place / "vxnet-probe.deb")], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    before = state_of_host()
    shared = Mount(kind="bind", source=str(place), target="/srv", read_only=True)
    box = boxes("sh", "-c", SCRIPT, mounts=(shared,))
    await (await box.start()).start_main()
    end = await box.task.wait()
    assert (end.status, box.output) == (0, "installed\nStatus: install ok installed\n"), box.output
    assert state_of_host() == before
    assert not Path("/usr/bin/vxnet-probe").exists()
    other = boxes("sh", "-c", "command -v vxnet-probe || echo not here")
    await (await other.start()).start_main()
    await other.task.wait()
    assert other.output == "not here\n"
