"""A visit: look, judge, perhaps cure, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from vxnet import __version__
from vxnet.cluster.client import Client
from vxnet.doctor.checks import HOST
from vxnet.doctor.patient import Patient, look
from vxnet.doctor.peer_checks import PEERS
from vxnet.host import offload
from vxnet.model.checkup import Finding

HEALTHY, WARNINGS, FAULTS = 0, 3, 4
"""Exit statuses; 1 and 2 are every command's."""


def examine(client: Client, progress: Callable[[str], None] = lambda text: None) -> tuple[Patient, list[Finding]]:
    """Takes a few seconds. Raises :class:`HostError` without root."""
    patient = look(client, __version__, progress)
    return patient, judge(patient)


def judge(patient: Patient) -> list[Finding]:
    return [found for check in (*HOST, *PEERS) for found in check(patient)]


def cure(patient: Patient, findings: Sequence[Finding]) -> list[str]:
    """Do what a machine may do by itself about these; what was done."""
    done: list[str] = []
    if any(found.fixable for found in findings):
        damaged = [p for p in patient.exam.peers if "damaged" in " ".join(p.there)] if patient.exam is not None else []
        for interface in sorted({patient.ways.get(peer.vtep, "") for peer in damaged}):
            if interface not in patient.offloading:
                continue
            try:
                offload.stop_computing_checksums(interface)
            except OSError as error:
                done.append(f"{interface} refuses to leave checksums to the kernel: {error.strerror}")
            else:
                done.append(
                    f"{interface} leaves checksums to the kernel from now on (as `ethtool -K {interface} tx off`)"
                )
    return done


def with_cures(findings: Sequence[Finding], before: Sequence[Finding], done: Sequence[str]) -> list[Finding]:
    """What was found after a cure, with what was done told where it helped."""
    if not done:
        return list(findings)
    cured = {found.check for found in before if found.fixable}
    return [replace(found, fixed="; ".join(done)) if found.check in cured else found for found in findings]


def status(findings: Sequence[Finding]) -> int:
    verdicts = {found.verdict for found in findings}
    return FAULTS if "fault" in verdicts else WARNINGS if "warning" in verdicts else HEALTHY
