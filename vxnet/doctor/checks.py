"""The table of checks about this host alone. Each is a function of what was looked at, and names what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from vxnet.core.evidence import REMOVED
from vxnet.doctor.patient import Patient
from vxnet.model.checkup import Finding, Verdict

Check = Callable[[Patient], Iterator[Finding]]

SHOWN: Final = 5
"""Of a list of the same."""
LEAST_FREE: Final = 64 << 20
"""Octets of a disk: a daemon's state takes a few, a container's own files more."""
LEAST_INODES: Final = 0.02
NAT_ADDRESS: Final = "10.0.2.15"
"""What VirtualBox's NAT gives to every machine's first card."""
OVERDUE_AT: Final = 0.67
"""Of a certificate's life: the daemon has it renewed at half of it."""


def finding(check: str, verdict: Verdict, found: str, advice: str = "", *, fixable: bool = False) -> Finding:
    return Finding(check=check, verdict=verdict, found=found, advice=advice, fixable=fixable)


def listed(words: list[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def daemon(patient: Patient) -> Iterator[Finding]:
    if patient.info is None:
        advice = "`systemctl start vxnetd`, and `journalctl -u vxnetd` says why it ended; containers go on meanwhile"
        yield finding("daemon", "fault", f"it does not answer: {patient.silence}", advice)
    elif patient.info.version != patient.version:
        found = f"it is vxnet {patient.info.version}, and this command is {patient.version}"
        advice = (
            "`systemctl restart vxnetd`: containers and traffic go on meanwhile; until then `state` is not compared"
        )
        yield finding("daemon", "warning", found, advice)
    else:
        yield finding("daemon", "ok", f"vxnet {patient.info.version} answers")


def kernel(patient: Patient) -> Iterator[Finding]:
    for lack in patient.missing:
        what, _, cure = lack.partition(": ")
        yield finding("kernel", "fault", f"it lacks {what}", cure)
    if not patient.missing:
        tunnels = {"kernel": "the kernel's vxlan devices", "userspace": "vxnet's own, in user space"}
        chosen = f"; tunnels are {tunnels[patient.info.datapath]}" if patient.info is not None else ""
        yield finding("kernel", "ok", f"has all that vxnet needs{chosen}")


def cluster(patient: Patient) -> Iterator[Finding]:
    info, diagnosis = patient.info, patient.diagnosis
    if info is None or diagnosis is None:
        return
    if not info.cluster:
        yield finding("cluster", "note", "this host is in no cluster", "`vxnet init` makes one, `vxnet join` joins one")
        return
    if diagnosis.removed:
        found = "the managers have removed this node; what runs here goes on without news"
        yield finding("cluster", "fault", found, "`vxnet leave --force`, and join again")
    elif not info.manager_reachable:
        found = f"no manager can be reached: {', '.join(info.managers)}"
        yield finding("cluster", "fault", found, "networks and containers go on, new wishes wait: look at the managers")
    else:
        yield finding("cluster", "ok", f"{info.role} of {info.cluster[:12]}, a manager is in reach")
    for reason, count in sorted(info.rows_refused.items()):
        if reason == REMOVED:  # what they left behind, as it should be
            continue
        found = f"{count} rows of others are kept without effect: {reason}"
        advice = (
            "`vxnet gossip` shows whose; a host with a wrong clock, or two that claim one address, are usual causes"
        )
        yield finding("cluster", "warning", found, advice)


def state(patient: Patient) -> Iterator[Finding]:
    diagnosis = patient.diagnosis
    if diagnosis is None:
        return
    if patient.unseen:
        yield finding("state", "fault", f"the kernel could not be looked at: {patient.unseen}")
        return
    for change in diagnosis.refused[:SHOWN]:
        found = f"the kernel refuses to {change.verb} {change.object}: {change.error}"
        yield finding("state", "fault", found, "take away what is in its way; it is tried again every 30 s")
    if patient.info is not None and patient.info.version != patient.version:
        return  # `daemon` says so: the same plan may be other rules to another version
    words = [f"{change.verb} {change.object}" for change in patient.unplanned]
    if words:
        found = f"the kernel is not as planned, to be done: {listed(words)}"
        advice = (
            "the daemon mends this within a second, so somebody undoes it again and again: `ip monitor`, `nft monitor`"
        )
        yield finding("state", "fault", found, advice)
    elif not diagnosis.refused:
        plan = diagnosis.plan
        yield finding("state", "ok", f"as planned: {len(plan.segments)} overlays, {len(plan.sandboxes)} containers")


def vtep(patient: Patient) -> Iterator[Finding]:
    info, diagnosis = patient.info, patient.diagnosis
    if info is None or diagnosis is None or info.data_path_addr is None or info.advertise_addr is None:
        return
    found: list[Finding] = []
    held = {one.address.ip: one.interface for one in patient.addresses}
    for what, address in {"advertise": info.advertise_addr, "data path": info.data_path_addr}.items():
        what, flag = f"{what} address", f"--{what.replace(' ', '-')}-addr"
        move = f"on a manager: `vxnet node update {flag} ADDRESS {info.name}`"
        if address not in held:
            have = listed([f"{ip} ({name})" for ip, name in held.items()]) or "none"
            words = f"no interface that is up has the {what} {address}; there are {have}"
            found.append(finding("vtep", "fault", words, f"give it back to its interface, or {move}"))
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            words = f"the {what} {address} is none that another host can reach"
            found.append(finding("vtep", "fault", words, move))
        if str(address) == NAT_ADDRESS:
            words = f"the {what} is {address}, which VirtualBox gives to every machine"
            found.append(
                finding("vtep", "fault", words, "join again with the address of the host-only or bridged card")
            )
        for subnet in diagnosis.subnets:
            if subnet.version == address.version and address in subnet:
                words = f"the {what} {address} lies in {subnet}, a network of the containers'"
                found.append(finding("vtep", "fault", words, "make that network with another --subnet"))
    if not found:
        place = held[info.data_path_addr]
        found.append(finding("vtep", "ok", f"{info.data_path_addr} on {place}, UDP {info.data_port}"))
    yield from found


def certificates(patient: Patient) -> Iterator[Finding]:
    diagnosis = patient.diagnosis
    if diagnosis is None or diagnosis.certificate_from is None or diagnosis.certificate_until is None:
        return
    begin, end = diagnosis.certificate_from, diagnosis.certificate_until
    days = (end - patient.now) / 86400
    if patient.now < begin:
        found = f"this node's certificate is valid only in {(begin - patient.now) / 3600:.1f} hours"
        yield finding("certificates", "fault", found, "set this host's clock: `timedatectl set-ntp true`")
    elif days < 0:
        found = f"this node's certificate ended {-days:.0f} days ago: no manager and no row of this host is believed"
        yield finding("certificates", "fault", found, "if the clock is right: `vxnet leave --force`, and join again")
    elif patient.now > begin + OVERDUE_AT * (end - begin):
        found = f"this node's certificate ends in {days:.0f} days, and it should have been renewed long ago"
        yield finding(
            "certificates", "warning", found, "`journalctl -u vxnetd -g certificate` says what the managers answer"
        )
    else:
        yield finding("certificates", "ok", f"this node's is good for {days:.0f} days and renews itself")
    if diagnosis.authority_until is not None and diagnosis.authority_until < end:
        left = (diagnosis.authority_until - patient.now) / 86400
        found = f"the cluster's certificate authority ends in {left:.0f} days, before the certificates that it signs"
        yield finding("certificates", "warning", found, "`vxnet ca rotate` on a manager")


def disk(patient: Patient) -> Iterator[Finding]:
    bad = False
    for one in patient.disks:
        if one.read_only:
            found, advice = f"{one.path} is on a read-only file system", "`dmesg` says why; remount it writable"
        elif one.free < LEAST_FREE:
            found = f"{one.path} has {one.free >> 20} MiB left"
            advice = "make room: `vxnet prune` removes containers that have ended, `vxnet ps -a` lists them"
        elif one.inodes and one.free_inodes < LEAST_INODES * one.inodes:
            found, advice = f"{one.path} has {one.free_inodes} inodes left", "make room: `vxnet prune`"
        else:
            continue
        bad = True
        yield finding("disk", "fault", found, advice)
    if not bad and patient.disks:
        least = min(one.free for one in patient.disks)
        yield finding("disk", "ok", f"{least >> 20} MiB or more are free where vxnet writes")


def leftovers(patient: Patient) -> Iterator[Finding]:
    if patient.diagnosis is None:
        return
    if patient.leftovers:
        found = f"of no container that the daemon knows: {listed(list(patient.leftovers))}"
        yield finding("leftovers", "warning", found, "look at it, then remove it: nobody else will")
    else:
        yield finding("leftovers", "ok", "nothing that belongs to nobody")


def names(patient: Patient) -> Iterator[Finding]:
    silent = [str(server) for server, answers in patient.resolvers.items() if not answers]
    if silent:
        found = f"these name servers of /etc/resolv.conf do not answer: {listed(silent)}"
        advice = "names outside the cluster are slow or unknown in containers: mend /etc/resolv.conf, or `run --dns`"
        yield finding("names", "fault" if len(silent) == len(patient.resolvers) else "warning", found, advice)
    deaf = [one.name for one in patient.inside if one.names is False]
    if deaf:
        found = f"127.0.0.11 does not answer in {listed(deaf)}"
        advice = "look for rules that are not vxnet's: `vxnet exec NAME nft list ruleset`"
        yield finding("names", "fault", found, advice)
    if not silent and not deaf:
        asked = sum(one.names is not None for one in patient.inside)
        yield finding(
            "names", "ok", f"{len(patient.resolvers)} name servers of the host answer, and in {asked} containers"
        )


def way_out(patient: Patient) -> Iterator[Finding]:
    """Containers send through vxnet_gw by way of this host's forwarding, which other people's rules may drop."""
    chains = [chain for chain in patient.chains if chain.hook == "forward"]
    blamed = f"; suspects: {listed([str(chain) for chain in chains])}" if chains else ""
    tried = [one for one in patient.inside if one.gateway is not None]
    closed = [one.name for one in tried if not one.gateway]
    if closed:
        inputs = [str(chain) for chain in patient.chains if chain.hook == "input"]
        found = f"vxnet_gw does not answer in {listed(closed)}"
        suspects = f"; suspects: {listed(inputs)}" if inputs else ""
        yield finding("way out", "fault", found + suspects, "accept what comes in by vxnet_gw")
    held = [one.name for one in tried if one.gateway and one.beyond is not None and not one.reached]
    if held:
        beyond = next(one.beyond for one in tried if one.name == held[0])
        found = f"this host reaches {beyond}, and containers on it ({listed(held)}) do not{blamed}"
        yield finding("way out", "fault", found, "accept forwarded packets with iifname or oifname vxnet_gw there")
    elif not closed:
        through = sum(one.reached for one in tried)
        yield finding(
            "way out", "ok", f"open: tried from {through} containers" if through else "no container to try it from"
        )


HOST: Final[tuple[Check, ...]] = (daemon, kernel, cluster, state, vtep, certificates, disk, leftovers, names, way_out)
