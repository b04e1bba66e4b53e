"""What README.md has typed on real hosts, typed on two machines that had nothing of vxnet.

::

    vm1 is its h1, 192.168.56.31      vm2 its h2, .32
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tutorial.console import Step, filled, steps
from tests.vm.conftest import MakeVm
from vxnet.lab import Lab, state

README = Path(__file__).resolve().parents[2] / "README.md"
COMMANDS_A_HOST = 5


def section(title: str) -> str:
    _, _, rest = README.read_text().partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def typed() -> list[Step]:
    return steps(section("On real hosts").replace("192.168.56.1", "192.168.56.3"))


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_it_takes_five_commands(host: str) -> None:
    assert 1 < len([step for step in typed() if step.host == host]) <= COMMANDS_A_HOST


@pytest.mark.vms
@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_nothing_to_containers_that_talk(make_vm: MakeVm) -> None:
    with Lab(hosts=1, join=False) as lab:
        underlay = state.load(lab.name).underlay
        assert underlay is not None
        machines = {f"h{number}": make_vm(underlay, number) for number in (1, 2)}
        try:
            for machine in machines.values():
                machine.start()
            printed = ""
            for step in typed():
                machine = machines[step.host]
                if package := re.search(r"\./(vxnet_\S+\.deb)", step.command.text):
                    assert machine.run("sh", "-c", "command -v vxnet").status != 0
                    machine.sh(f"cp /media/vxnet.deb {package[1]}")
                printed += machine.sh(filled(step.command.text, printed), timeout_s=400)
            assert "Directory listing" in printed
        finally:
            for machine in machines.values():  # before the lab, whose underlay they are plugged into
                machine.kill()
