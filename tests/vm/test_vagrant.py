"""The Vagrantfile: what `vagrant validate` says of it, and what comes of it.

Of the latter the tests are the steps of one story, in this order, on one set of machines; `make vagrant-test` only.

::

    libvirt's namespaces     n1, n2, n3   192.168.56.11, .12, .13, from a box made of the image of tests/vm
                             .1           a client outside the cluster, the tutorial's h4
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tutorial.typist import Typist
from tests.vm.hypervisor import Hypervisor, box
from tests.vm.image import Image

ROOT = Path(__file__).resolve().parents[2]
VAGRANTFILE = ROOT / "vagrant/Vagrantfile"
UP_S = 3600.0
"""Three machines, one after the other, with the package installed: five minutes by emulation on a core of their own."""
OUTSIDE = "192.168.56.1"

brought_up = [pytest.mark.vagrant, pytest.mark.slow, pytest.mark.timeout(2 * UP_S)]


def validate(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "Vagrantfile").write_text(text)
    (folder / "vxnet.deb").touch()
    own = {"VAGRANT_HOME": str(folder / "home"), "VXNET_PACKAGE": str(folder / "vxnet.deb"), "VXNET_NODES": "2"}
    argv = ["vagrant", "validate", "--ignore-provider"]
    return subprocess.run(argv, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_vagrant_accepts_it(tmp_path: Path) -> None:
    good = validate(tmp_path, VAGRANTFILE.read_text())
    assert good.returncode == 0, good.stdout + good.stderr
    assert "n2" in good.stdout
    assert "n3" not in good.stdout
    # It looks at what is written there: a setting that there is not is refused.
    bad = validate(tmp_path, VAGRANTFILE.read_text().replace("node.vm.hostname", "node.vm.hostnam"))
    assert bad.returncode != 0
    assert "hostnam" in bad.stdout + bad.stderr


class Vagrant:
    """The Vagrantfile in a folder of its own, and libvirt to bring its machines up."""

    def __init__(self, folder: Path, image: Image, package: Path) -> None:
        self._folder = folder
        for name in ("state", "project"):
            (folder / name).mkdir()
        shutil.copy(VAGRANTFILE, folder / "project")
        self.hypervisor = Hypervisor(folder / "state")
        self._variables = {
            "VAGRANT_HOME": str(folder / "home"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VXNET_BOX": "vxnet-test",
            "VXNET_PACKAGE": str(package),
        }
        made = folder / "vxnet-test.box"
        box(image, made)
        self("box", "add", "--name", "vxnet-test", str(made))
        made.unlink()

    def __call__(self, *argv: str, **variables: str) -> str:
        """What vagrant prints."""
        project = self._folder / "project"
        done = self.hypervisor.run(
            ["vagrant", *argv], cwd=project, timeout_s=UP_S, check=True, **self._variables, **variables
        )
        return done.stdout

    def find(self) -> None:
        """Note how machines are reached by ssh: for one command `vagrant ssh` takes seconds."""
        (self._folder / "ssh").write_text(self("ssh-config") + "  ControlMaster auto\n  ControlPersist 60\n")

    def on(self, host: str, command: str, *, terminal: bool) -> list[str]:
        quoted = command.replace("'", "'\\''")
        if host == "outside":
            return self.hypervisor.inside(["sh", "-c", command])
        ssh = ["ssh", "-q", "-F", str(self._folder / "ssh"), *(["-tt"] if terminal else []), host]
        return self.hypervisor.inside([*ssh, f"sudo sh -c '{quoted}'"])

    def root(self, host: str, command: str) -> str:
        done = subprocess.run(
            self.on(host, command, terminal=False), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{host}: {command}: {done.stderr or done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def vagrant(vm_image: Image, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vagrant]:
    made = Vagrant(tmp_path_factory.mktemp("vagrant"), vm_image, package)
    try:
        yield made
    finally:
        made.hypervisor.close()


def states(vagrant: Vagrant) -> dict[str, str]:
    """Of nodes, as n1 has it."""
    return dict(re.findall(r"\b(n\d) +(\w+)", vagrant.root("n1", "vxnet node ls")))


class TestMachines:
    pytestmark = brought_up

    def test_machines_with_the_package(self, vagrant: Vagrant) -> None:
        vagrant("up", VXNET_CLUSTER="no")
        vagrant.find()
        for number in (1, 2, 3):
            assert vagrant.root(f"n{number}", "systemctl is-active vxnetd; hostname").split() == [
                "active",
                f"n{number}",
            ]
            assert f"192.168.56.{10 + number}/24" in vagrant.root(f"n{number}", "ip -4 -o address show eth1")

    def test_the_tutorial(self, vagrant: Vagrant) -> None:
        """Its hosts are the machines: h1 is n1, and h4, which stays outside, is where they run. The machines' first
        card has an address of 10.0.0.0/20, so that the networks of the cluster begin behind that."""
        page = (ROOT / "docs/tutorial.md").read_text().replace("10.0.16.", "10.0.")
        page = page.replace("192.168.56.14", OUTSIDE).replace("h4#", "outside#")
        Typist(vagrant.on, patience_s=120).type(re.sub(r"\bh(?=[123]\b|…)", "n", page))

    def test_provision_makes_the_cluster(self, vagrant: Vagrant) -> None:
        """And what README.md has typed answers."""
        vagrant("provision")
        assert states(vagrant) == {"n1": "Ready", "n2": "Ready", "n3": "Ready"}
        fetch = "vxnet run --rm --network demo -- curl -s --retry 5 --retry-all-errors http://web"
        assert "Directory listing" in vagrant("ssh", "n2", "-c", f"sudo {fetch}")
        assert vagrant("ssh", "n1", "-c", "sudo vxnet service ps web").count("Running") >= 3

    def test_a_machine_is_halted_and_started(self, vagrant: Vagrant) -> None:
        vagrant("halt", "n3")
        assert "shutoff" in vagrant("status", "n3")
        vagrant("up", "n3")
        vagrant.find()
        assert states(vagrant) == {"n1": "Ready", "n2": "Ready", "n3": "Ready"}
        fetch = "vxnet run --rm --network demo -- curl -s --retry 5 --retry-all-errors http://web"
        assert "Directory listing" in vagrant.root("n3", fetch)
        vagrant("destroy", "-f")
