"""The package built, the image, and machines that are gone at the end; what they said is in a failure's report."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm import image
from tests.vm.image import Image
from tests.vm.machine import GuestError, Vm

if TYPE_CHECKING:
    from vxnet.lab.process import Process

ROOT = Path(__file__).resolve().parents[2]
NEXT_VERSION = "99.0"


@pytest.fixture(scope="session")
def vm_image() -> Image:
    return image.ensure()


@pytest.fixture(scope="session")
def package() -> Path:
    """This tree's."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([ROOT / "scripts/deb"], **streams, text=True, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout
    return ROOT / str(done.stdout.split()[-1])


@pytest.fixture(scope="session")
def media(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with this tree's package, vxnet.deb, and the same as a later version, next.deb."""
    folder = tmp_path_factory.mktemp("media")
    files = folder / "files"
    files.mkdir()
    shutil.copy(package, files / "vxnet.deb")
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "-R", files / "vxnet.deb", tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {NEXT_VERSION}", control.read_text()))
    init = tree / "usr/lib/vxnet/lib/python3.11/site-packages/vxnet/__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{NEXT_VERSION}"', init.read_text()))
    shutil.rmtree(init.parent / "__pycache__")
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, files / "next.deb"], check=True)
    shutil.rmtree(tree)
    image.files(files, folder / "media.ext4")
    return folder / "media.ext4"


MakeVm = Callable[["Process", int], Vm]


@pytest.fixture(scope="module")
def make_vm(vm_image: Image, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeVm]:
    """Takes a process in the underlay's namespace and the machine's number; not started yet."""
    machines: list[Vm] = []
    _running.append(machines)

    def make(switch: Process, number: int) -> Vm:
        machines.append(Vm(number, vm_image, tmp_path_factory.mktemp(f"vm{number}"), switch, media))
        return machines[-1]

    try:
        yield make
    finally:
        _running.remove(machines)
        for machine in machines:
            machine.kill()


_running: list[list[Vm]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed:
        for machine in (machine for machines in _running for machine in machines):
            report.sections.append((f"{machine.name}: console", machine.console()[-3000:]))
            with contextlib.suppress(GuestError, OSError):
                journal = machine.sh("journalctl -b --no-pager -n 80 -o short-monotonic", timeout_s=30)
                report.sections.append((f"{machine.name}: journal", journal))
    return report
