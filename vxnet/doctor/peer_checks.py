"""The table of checks about this host and the others: what the examination heard, and what probes told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from vxnet.core.plan import overhead
from vxnet.doctor.checks import Check, finding, listed
from vxnet.doctor.patient import Patient
from vxnet.model.checkup import Finding, Heard, PeerExam
from vxnet.model.cluster import CONTROL_PORT, GOSSIP_PORT
from vxnet.model.store import CLIENT_PORT, PEER_PORT

SKEW_S: Final = 2.0
SKEW_FAULT_S: Final = 60.0
"""Certificates and tokens are held against the clock by the minute."""


def _peers(patient: Patient) -> tuple[PeerExam, ...]:
    return () if patient.exam is None else patient.exam.peers


def _blame(patient: Patient, hook: str) -> str:
    """Whose rules here may be the reason."""
    chains = [str(chain) for chain in patient.chains if chain.hook == hook]
    return f"; suspects here: {listed(chains)}" if chains else ""


def members(patient: Patient) -> Iterator[Finding]:
    if patient.unexamined:
        yield finding("members", "fault", f"the others were not examined: {patient.unexamined}")
    elif patient.exam is not None and patient.exam.error:
        yield finding("members", "fault", f"the others were not examined: {patient.exam.error}")
    if patient.gossip is None:
        return
    here = [one for one in patient.gossip.members if one.status in ("alive", "suspect")]
    for one in patient.gossip.members:
        if one.status in ("suspect", "dead"):
            word = "is down" if one.status == "dead" else "may be down"
            found = f"{one.name} ({one.address}) {word}, for {one.since_s:.0f} s"
            advice = "look whether it and its vxnetd run; one that is gone for good goes by `vxnet node rm`"
            yield finding("members", "fault" if one.status == "dead" else "warning", found, advice)
    if patient.gossip.health:
        found = f"this host is slow to answer (health score {patient.gossip.health}; 0 is healthy)"
        yield finding("members", "warning", found, "look at its load: the others may come to think that it is down")
    yield finding("members", "ok", f"{len(here)} here")


def gossip_port(patient: Patient) -> Iterator[Finding]:
    good = 0
    for peer in _peers(patient):
        if not peer.answered:
            if peer.version and peer.version != patient.version:
                found = f"{peer.name} runs vxnet {peer.version}, and did not answer; it may not know examinations"
                yield finding("gossip port", "note", found, "upgrade it")
            else:
                found = f"{peer.name} ({peer.address}) was not heard on {GOSSIP_PORT}, neither by UDP nor by TCP"
                advice = f"let {GOSSIP_PORT}/tcp and {GOSSIP_PORT}/udp in on both; `vxnet doctor` there sees its half"
                yield finding("gossip port", "fault", found + _blame(patient, "input"), advice)
            continue
        bad = False
        for protocol in ("udp", "tcp"):
            if protocol not in peer.here:
                found = f"{GOSSIP_PORT}/{protocol} from {peer.name} ({peer.address}) does not arrive here"
                advice = f"let {GOSSIP_PORT}/{protocol} in on this host"
                yield finding("gossip port", "fault", found + _blame(patient, "input"), advice)
                bad = True
            if protocol not in peer.there:
                found = f"{GOSSIP_PORT}/{protocol} from here does not arrive at {peer.name} ({peer.address})"
                advice = f"let {GOSSIP_PORT}/{protocol} in on {peer.name}: `vxnet doctor` there names the rule"
                yield finding("gossip port", "fault", found + _blame(patient, "output"), advice)
                bad = True
        good += not bad
    if good:
        yield finding(
            "gossip port", "ok", f"{GOSSIP_PORT}/tcp and {GOSSIP_PORT}/udp are open both ways, to {good} hosts"
        )


def manager_port(patient: Patient) -> Iterator[Finding]:
    managers = [peer for peer in _peers(patient) if peer.answered and peer.role == "manager"]
    for peer in managers:
        if "control" not in peer.here:
            found = f"{CONTROL_PORT}/tcp of the manager {peer.name} ({peer.address}) takes no connection from here"
            advice = f"let {CONTROL_PORT}/tcp in on {peer.name}: `vxnet doctor` there names the rule"
            yield finding("manager port", "fault", found + _blame(patient, "output"), advice)
    reached = [peer for peer in managers if "control" in peer.here]
    if patient.diagnosis is not None and patient.diagnosis.manager_here:
        for peer in _peers(patient):
            if peer.answered and "control" not in peer.there:
                found = f"{CONTROL_PORT}/tcp of this manager takes no connection from {peer.name} ({peer.address})"
                advice = f"let {CONTROL_PORT}/tcp in on this host"
                yield finding("manager port", "fault", found + _blame(patient, "input"), advice)
            elif peer.answered:
                reached.append(peer)
    if reached:
        yield finding("manager port", "ok", f"{CONTROL_PORT}/tcp is open, tried with {len(reached)} hosts")


def etcd_ports(patient: Patient) -> Iterator[Finding]:
    """Between managers, where vxnet runs etcd on their hosts."""
    if patient.diagnosis is None or not patient.diagnosis.etcd_here:
        return
    managers = [peer for peer in _peers(patient) if peer.answered and peer.role == "manager"]
    bad = False
    ports: tuple[tuple[int, Heard], ...] = ((CLIENT_PORT, "etcd-client"), (PEER_PORT, "etcd-peer"))
    for peer in managers:
        # An earlier version does not try these ports.
        tries = peer.version == patient.version or any(word in peer.there for _, word in ports)
        for port, word in ports:
            if word not in peer.here:
                bad = True
                found = f"{port}/tcp of the manager {peer.name} ({peer.address}) takes no connection from here"
                advice = f"let {port}/tcp in on {peer.name} from managers; does its etcd run? /var/lib/vxnet/etcd/log"
                yield finding("etcd ports", "fault", found + _blame(patient, "output"), advice)
            if tries and word not in peer.there:
                bad = True
                found = f"{port}/tcp of this manager takes no connection from {peer.name} ({peer.address})"
                advice = f"let {port}/tcp in on this host from managers"
                yield finding("etcd ports", "fault", found + _blame(patient, "input"), advice)
    if managers and not bad:
        found = f"{CLIENT_PORT}/tcp and {PEER_PORT}/tcp are open both ways, to {len(managers)} managers"
        yield finding("etcd ports", "ok", found)


def data_port(patient: Patient) -> Iterator[Finding]:
    if patient.exam is None or not patient.exam.probed_data or patient.diagnosis is None:
        return
    port = f"{patient.diagnosis.data_port}/udp"
    good = 0
    for peer in patient.exam.peers:
        if not peer.answered:
            continue
        incoming = {"data", "data-large"} & {*peer.here}
        outgoing = {"data", "data-large"} & {*peer.there}
        good += bool(incoming and outgoing)
        if not incoming and {"wire", "wire-large"} & {*peer.here}:
            found = f"{port} from {peer.name} ({peer.vtep}) reaches this host's card and is dropped here"
            yield finding("data port", "fault", found + _blame(patient, "input"), f"let {port} in on this host")
        elif not incoming:
            found = f"{port} from {peer.name} ({peer.vtep}) does not reach this host's card"
            advice = f"let {port} out on {peer.name} and through whatever is between"
            yield finding("data port", "fault", found, advice)
        if not outgoing and {"wire", "wire-large"} & {*peer.there}:
            found = f"{port} from here reaches the card of {peer.name} ({peer.vtep}) and is dropped there"
            advice = f"let {port} in on {peer.name}: `vxnet doctor` there names the rule"
            yield finding("data port", "fault", found, advice)
        elif not outgoing:
            found = f"{port} from here does not reach the card of {peer.name} ({peer.vtep})"
            advice = f"let {port} out on this host and through whatever is between"
            yield finding("data port", "fault", found + _blame(patient, "output"), advice)
    if good:
        yield finding("data port", "ok", f"{port} is open both ways, to {good} hosts")


def published(patient: Patient) -> Iterator[Finding]:
    """What a port of the routing mesh says on the other hosts; this host's own are theirs to try."""
    for one in patient.published:
        where = f"{one.port}/tcp of service {one.service} on {one.host}"
        if one.said == "silent":
            advice = f"let {one.port}/tcp through on {one.host}: forwarded packets too, as its tasks are behind it"
            yield finding("published ports", "fault", f"{where} does not answer" + _blame(patient, "output"), advice)
        elif one.said == "refused":
            advice = f"has it a task that is ready? `vxnet service ps {one.service}`"
            yield finding("published ports", "note", f"{where} refuses connections", advice)
    answered = [one for one in patient.published if one.said == "open"]
    if answered:
        ports = {(one.service, one.port) for one in answered}
        hosts = {one.host for one in answered}
        yield finding("published ports", "ok", f"{len(ports)} answer on {len(hosts)} other hosts")


def path_mtu(patient: Patient) -> Iterator[Finding]:
    short, silent = [], []
    for peer in _peers(patient):
        path = patient.carried.get(peer.vtep)
        if path is None or path.carried is None:
            silent.append(peer.name)
        if path is not None and path.carried is not None and path.is_short:
            short.append(peer.name)
            room = path.carried - overhead(peer.vtep)
            found = (
                f"the path to {peer.name} ({peer.vtep}) carries packets of {path.carried} octets, and its route "
                f"promises {path.promised}: large packets of containers are lost"
            )
            advice = f"mend the path, or make networks with `--opt mtu={room}`"
            yield finding("path mtu", "fault", found, advice)
        elif peer.answered and ("data" in peer.here and "data-large" not in peer.here):
            short.append(peer.name)
            large = patient.exam.large if patient.exam is not None else 0
            found = f"VXLAN packets of {large} octets from {peer.name} ({peer.vtep}) are lost, small ones arrive"
            yield finding("path mtu", "fault", found, f"`vxnet doctor` on {peer.name} finds how large they may be")
    if silent and not short:
        found = f"no echo comes back from {listed(silent)}: how large a packet may be is not known"
        yield finding("path mtu", "note", found, "let ICMP echo through, and the errors that tell of sizes")
    elif not short and patient.carried:
        least = min(path.carried or 0 for path in patient.carried.values())
        yield finding(
            "path mtu", "ok", f"all {len(patient.carried)} paths carry {least} octets, as their routes promise"
        )


def checksums(patient: Patient) -> Iterator[Finding]:
    own = [peer for peer in _peers(patient) if {"damaged", "damaged-large"} & {*peer.there}]
    theirs = [peer for peer in _peers(patient) if {"damaged", "damaged-large"} & {*peer.here}]
    for interface in sorted({patient.ways.get(peer.vtep, "") for peer in own}):
        names = [peer.name for peer in own if patient.ways.get(peer.vtep, "") == interface]
        found = f"packets that leave by {interface} arrive at {listed(names)} with wrong checksums inside"
        if interface in patient.offloading:
            advice = f"its card promises to compute them: `vxnet doctor --fix`, or `ethtool -K {interface} tx off`"
            yield finding("checksums", "fault", found, advice, fixable=True)
        else:
            yield finding("checksums", "fault", found, "something between the hosts changes packets: try another path")
    for peer in theirs:
        found = f"packets from {peer.name} ({peer.vtep}) arrive with wrong checksums inside"
        yield finding("checksums", "fault", found, f"`vxnet doctor --fix` on {peer.name}")
    heard = [peer for peer in _peers(patient) if {"wire", "wire-large"} & {*peer.there}]
    if heard and not own and not theirs:
        yield finding("checksums", "ok", f"small and large packets arrive whole at {len(heard)} hosts")


def duplicates(patient: Patient) -> Iterator[Finding]:
    bad = False
    own = patient.info
    holders: dict[str, list[str]] = defaultdict(list)
    machines: dict[str, list[str]] = defaultdict(list)
    if own is not None and own.data_path_addr is not None:
        holders[str(own.data_path_addr)].append(own.name)
    if patient.exam is not None and patient.exam.machine and own is not None:
        machines[patient.exam.machine].append(own.name)
    for peer in _peers(patient):
        holders[str(peer.vtep)].append(peer.name)
        if peer.machine:
            machines[peer.machine].append(peer.name)
    for vtep, hosts in holders.items():
        if len(hosts) > 1:
            bad = True
            found = f"{' and '.join(hosts)} have the same data path address {vtep}"
            yield finding("duplicates", "fault", found, "one of them is to leave and to join with its own address")
    for hosts in machines.values():
        if len(hosts) > 1:
            bad = True
            found = f"{' and '.join(hosts)} have the same machine id: one is a copy of the other"
            advice = "on the copy: rm /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; reboot"
            yield finding("duplicates", "warning", found, advice)
    mine = {one.address.ip for one in patient.addresses}
    for address, macs in patient.answering.items():
        if address in mine and macs:
            bad = True
            found = f"{' and '.join(sorted(macs))} answers for {address}, which is this host's"
            yield finding("duplicates", "fault", found, "find that machine and give it another address")
        elif address not in mine and len(macs) > 1:
            bad = True
            name = next((peer.name for peer in _peers(patient) if peer.vtep == address), "")
            found = f"{' and '.join(sorted(macs))} all answer for {address} ({name})"
            advice = (
                "two machines have it; or one that has two cards on this wire: sysctl net.ipv4.conf.all.arp_ignore=1"
            )
            yield finding("duplicates", "warning", found, advice)
    if not bad and patient.exam is not None:
        yield finding("duplicates", "ok", "addresses and machine ids are each one host's")


def clocks(patient: Patient) -> Iterator[Finding]:
    known = {peer.name: peer.clock_ahead_s for peer in _peers(patient) if peer.clock_ahead_s is not None}
    wrong = {name: ahead for name, ahead in known.items() if abs(ahead) > SKEW_S}
    for name, ahead in wrong.items():
        word = "ahead of" if ahead > 0 else "behind"
        found = f"the clock of {name} is {abs(ahead):.1f} s {word} this host's"
        advice = "certificates are judged by clocks: `timedatectl set-ntp true` on both"
        yield finding("clocks", "fault" if abs(ahead) > SKEW_FAULT_S else "warning", found, advice)
    if known and not wrong:
        most = max(abs(ahead) for ahead in known.values())
        yield finding("clocks", "ok", f"within {max(1, round(most * 1000))} ms of {len(known)} others")


PEERS: Final[tuple[Check, ...]] = (
    members,
    gossip_port,
    manager_port,
    etcd_ports,
    data_port,
    published,
    path_mtu,
    checksums,
    duplicates,
    clocks,
)
