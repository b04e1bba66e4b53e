"""What a service may be, and what a manager makes of a wish for one: decisions as in core/decisions."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from vxnet.core import allocate, networks, placement, ports, rollout, templates
from vxnet.core.containers import check_aliases, check_spec
from vxnet.core.decisions import Decision
from vxnet.core.wishes import Counter, Wishes, lease_key
from vxnet.model.api import ServiceUpdate
from vxnet.model.cluster import Lease, Network
from vxnet.model.codec import to_json
from vxnet.model.container import NetworkWish
from vxnet.model.errors import CallerError, ConflictError, UnsupportedError
from vxnet.model.service import (
    Service,
    ServiceNetwork,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
    UpdateStatus,
)

NAME_MAX: Final = 40
"""Characters: a task's name puts a slot and half an id behind it, and has to remain a label of DNS (RFC 1035: 63)."""
SPEC_MAX: Final = 64 << 10
"""Octets of a specification in JSON. Each task carries one, and a commit takes 1 MB."""
REPLICAS_MAX: Final = 100_000
_NAME: Final = re.compile(rf"[a-zA-Z0-9]([a-zA-Z0-9_-]{{0,{NAME_MAX - 2}}}[a-zA-Z0-9])?")


def create(wishes: Wishes, spec: ServiceSpec, id: str, now: float) -> tuple[Decision, Service]:
    """Raises :class:`CallerError`, :class:`ConflictError` (the name), :class:`NotFoundError` (a network),
    :class:`UnsupportedError`, :class:`ExhaustedError` (a network's addresses).
    """
    spec = _checked(wishes, spec, id)
    _check_free(wishes, spec.name)
    places = _networks(wishes, spec, ())
    service = Service(id=id, spec=spec, networks=places, created_at=now, updated_at=now)
    changes: dict[str, object | None] = {f"service/{id}": service, "set/service": Counter()}
    return _guarded(_with_vips(wishes, changes, service, ()), spec), service


def update(wishes: Wishes, ref: str, wish: ServiceUpdate, now: float) -> tuple[Decision, Service]:
    """An update that has paused goes on, unless only the number of replicas is to be another. Raises as
    :func:`create`, and :class:`ConflictError` if the service is no longer as it was.
    """
    service = networks.find(ref, wishes.services.values(), "service")
    if wish.base != service.spec:
        raise ConflictError(f"service {service.name} was changed meanwhile", hint="look at it, and try again")
    spec = _checked(wishes, wish.spec, service.id)
    if spec.name != service.name:
        raise CallerError(f"service {service.name} cannot be renamed", hint="create another one, and remove this one")
    if spec.mode != service.spec.mode:
        raise CallerError(f"service {service.name} is {service.spec.mode}, which cannot be changed")
    if spec.mode == "global" and spec.replicas != service.spec.replicas:
        raise _without_number(service)
    changed = replace(
        service,
        spec=spec,
        networks=_networks(wishes, spec, service.networks),
        updated_at=now,
        rebalance=wish.rebalance or service.rebalance,
    )
    same_tasks = spec.task == service.spec.task
    # What concerns no task is no reason to forget what an unfinished update would go back to.
    if spec != service.spec and not (same_tasks and rollout.is_unfinished(service)):
        changed = replace(changed, previous=service.spec, previous_version=service.version)
    if same_tasks and (spec == service.spec or replace(spec, replicas=service.spec.replicas) != service.spec):
        changed = rollout.resumed(changed, now)
    if not same_tasks:
        # What goes back by hand to what it was goes back to those tasks, too.
        back = service.previous is not None and spec.task == service.previous.task
        changed = replace(
            changed,
            version=service.previous_version if back else service.last_version + 1,
            last_version=service.last_version + (not back),
            update=UpdateStatus(state="updating", started_at=now, revisits=back),
        )
    if changed == replace(service, updated_at=now):
        return Decision({}), service
    changes: dict[str, object | None] = {f"service/{service.id}": changed}
    if spec.ports != service.spec.ports or changed.networks != service.networks:
        changes["set/service"] = Counter()
    return _guarded(_with_vips(wishes, changes, changed, service.networks), spec), changed


def roll_back(wishes: Wishes, ref: str, now: float) -> tuple[Decision, Service]:
    """Raises :class:`NotFoundError`, :class:`ConflictError` if there is nothing to go back to."""
    service = networks.find(ref, wishes.services.values(), "service")
    if service.previous is None:
        hint = "it was never updated, or has gone back already"
        raise ConflictError(f"service {service.name} has no previous specification", hint=hint)
    changed = rollout.back(service, now, "rolled back by request", and_forth=True)
    spec = _with_ports(wishes, changed.spec, service.id)
    changed = replace(changed, spec=spec, networks=_networks(wishes, spec, service.networks))
    changes: dict[str, object | None] = {f"service/{service.id}": changed, "set/service": Counter()}
    return _guarded(_with_vips(wishes, changes, changed, service.networks), spec), changed


def with_places(wishes: Wishes, changes: Mapping[str, object | None]) -> dict[str, object | None]:
    """The scheduler's ``changes``, and with a service that goes back by itself (core/rollout) its places on networks
    as they have to be then. These are first, so that they are one commit. Of several services one: the others' turn
    comes with the next plan, which knows the virtual IPs that are given here.
    """
    rest = dict(changes)
    first: dict[str, object | None] = {}
    for key, changed in changes.items():
        before = wishes.services.get(changed.id) if isinstance(changed, Service) else None
        if not isinstance(changed, Service) or before is None or changed.spec == before.spec:
            continue
        del rest[key]
        if not first:
            with contextlib.suppress(CallerError):  # no address is left: it goes back all the same
                changed = replace(changed, networks=_networks(wishes, changed.spec, before.networks))
            first = _with_vips(wishes, {key: changed}, changed, before.networks).changes
    return first | rest


def scale(wishes: Wishes, ref: str, replicas: int, now: float) -> tuple[Decision, Service]:
    """Raises :class:`NotFoundError`, :class:`CallerError`."""
    service = networks.find(ref, wishes.services.values(), "service")
    if service.spec.mode != "replicated":
        raise _without_number(service)
    wish = ServiceUpdate(spec=replace(service.spec, replicas=replicas), base=service.spec)
    return update(wishes, service.id, wish, now)


def _without_number(service: Service) -> CallerError:
    return CallerError(f"service {service.name} is global: it has a task on every node, and no number of replicas")


def remove(wishes: Wishes, ref: str) -> tuple[Decision, Service]:
    """Its tasks are ended by the scheduler. Raises :class:`NotFoundError`."""
    service = networks.find(ref, wishes.services.values(), "service")
    changes: dict[str, object | None] = {f"service/{service.id}": None, "set/service": Counter()}
    return _with_vips(wishes, changes, replace(service, networks=()), service.networks), service


# What may be asked for


def _check_free(wishes: Wishes, name: str) -> None:
    taken = next((service for service in wishes.services.values() if service.name == name), None)
    if taken is not None:
        raise ConflictError(
            f"there is a service {name!r} already (id {taken.id})",
            hint=f"choose another name, or change it with `vxnet service update {name}`",
        )


def _checked(wishes: Wishes, spec: ServiceSpec, id: str) -> ServiceSpec:
    """With its networks by id, and its ports numbered."""
    if not _NAME.fullmatch(spec.name):
        raise CallerError(
            f"{spec.name!r} cannot be a service's name",
            hint=f"use up to {NAME_MAX} letters, digits, hyphens and underscores, a letter or digit at both ends",
        )
    if not 0 <= spec.replicas <= REPLICAS_MAX:
        raise CallerError(f"a service has from 0 to {REPLICAS_MAX} replicas, not {spec.replicas}")
    if spec.affinity and spec.endpoint_mode != "vip":
        raise CallerError("--affinity needs --endpoint-mode vip: without a VIP the client chooses")
    if spec.mode == "global" and spec.task.placement.max_per_node:
        raise CallerError("--replicas-max-per-node is for replicated services: a global one has one task on each node")
    _check_task(spec.task)
    for config in (spec.update, spec.rollback):
        _check_update(config)
    task = spec.task
    container = replace(task.container, networks=_wishes(wishes, task.container.networks), name="")
    spec = _with_ports(wishes, replace(spec, task=replace(task, container=container)), id)
    if (octets := len(to_json(spec))) > SPEC_MAX:
        raise CallerError(f"this service's description takes {octets} octets: at most {SPEC_MAX} are stored")
    return spec


def _with_ports(wishes: Wishes, spec: ServiceSpec, id: str) -> ServiceSpec:
    assert wishes.cluster is not None
    if ports.in_mesh(spec.ports) and networks.ingress_of(wishes.networks.values()) is None:
        raise ConflictError(
            "there is no ingress network, which published ports need",
            hint=f"`vxnet network create --ingress {networks.INGRESS}`, or publish with mode=host",
        )
    return ports.settle(spec, id, wishes.services, wishes.nodes.values(), wishes.cluster.data_port)


def _guarded(decision: Decision, spec: ServiceSpec) -> Decision:
    """Ports are nobody else's, and lead somewhere, as long as services and the ingress network are as they were."""
    if not spec.ports or not decision.changes:
        return decision
    return Decision(decision.changes, {*decision.guards, "set/service", "set/ingress"})


def _wishes(wishes: Wishes, wanted: Iterable[NetworkWish]) -> tuple[NetworkWish, ...]:
    found: dict[str, NetworkWish] = {}
    for wish in wanted:
        if wish.network in networks.RESERVED_NAMES:
            raise UnsupportedError(
                f"services on network {wish.network!r} are not built yet", hint="name an overlay network"
            )
        network = networks.find(wish.network, wishes.networks.values(), "network")
        if network.id in found:
            raise CallerError(f"network {network.name} is given twice")
        if network.ingress:
            raise CallerError(f"network {network.name} is the routing mesh's", hint="use --publish")
        if wish.ip is not None:
            raise UnsupportedError("a chosen address for a service's tasks is not built yet", hint="leave ip= out")
        found[network.id] = replace(wish, network=network.id)
    return tuple(found.values())


def _check_task(task: TaskSpec) -> None:
    check_spec(templates.example(task.container))
    for wish in task.container.networks:
        check_aliases(wish.aliases)
    for text in task.placement.constraints:
        placement.parse_constraint(text)
    for key in task.placement.preferences:
        placement.check_key(key)
    numbers: Mapping[str, float] = {
        "--restart-delay": task.restart.delay_s,
        "--restart-max-attempts": task.restart.max_attempts,
        "--restart-window": task.restart.window_s,
        "--host-grace": task.restart.host_grace_s,
        "--stop-grace-period": task.stop_grace_s,
        "--drain-timeout": task.drain_s,
        "--reserve-cpu": task.reserve_cpus,
        "--reserve-memory": task.reserve_memory,
        "--replicas-max-per-node": task.placement.max_per_node,
    }
    for flag, number in numbers.items():
        if number < 0:
            raise CallerError(f"{flag} cannot be negative, found {number:g}")
    if task.health is not None:
        health = task.health
        waits = health.interval_s, health.timeout_s, health.start_interval_s
        if not health.argv or health.retries < 1 or min(waits) <= 0:
            raise CallerError("a health check needs a command, intervals, a timeout and at least one retry")
    for port in task.ports:
        found = re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?:([0-9]{1,5})/(tcp|udp|sctp)", port)
        if not found or not 0 < int(found[2]) < 65536:
            raise CallerError(f"{port!r} is no port", hint="write [NAME:]PORT[/PROTOCOL], such as http:80/tcp")


def _check_update(config: UpdateConfig) -> None:
    if config.parallelism < 0 or config.delay_s < 0 or config.monitor_s < 0 or not 0 <= config.max_failure_ratio <= 1:
        raise CallerError("an update's numbers are not negative, and its failure ratio is from 0 to 1")


# Its place on networks


def _networks(wishes: Wishes, spec: ServiceSpec, before: Iterable[ServiceNetwork]) -> tuple[ServiceNetwork, ...]:
    """With a VIP on each, the one that it had where it had one."""
    vips = {place.network: place.vips for place in before}
    places = []
    for wish in spec.task.container.networks:
        network = wishes.networks.get(wish.network)
        if network is None:
            raise ConflictError(
                f"service {spec.name} was on a network that has been removed since (id {wish.network})",
                hint="change it with `vxnet service update` instead",
            )
        if network.driver != "overlay":
            raise UnsupportedError(f"services on network {network.name} (driver {network.driver}) are not built yet")
        mine = vips.get(network.id, ()) if spec.endpoint_mode == "vip" else ()
        if spec.endpoint_mode == "vip" and not mine:
            mine = allocate.pick_vips(network, wishes.leases_of_network(network.id))
        places.append(ServiceNetwork(network=network.id, aliases=wish.aliases, vips=mine))
    return tuple(places)


def _with_vips(
    wishes: Wishes, changes: dict[str, object | None], service: Service, before: Iterable[ServiceNetwork]
) -> Decision:
    """``changes`` and the leases of the VIPs that ``service`` has now and had not, and those that it has no longer.

    A VIP is leased like a node's block, under the same guard: so nobody gets it who has not asked the same store.
    """
    old = {lease_key(place.network, ipaddress.ip_network(vip)): place.network for place in before for vip in place.vips}
    new: dict[str, Lease] = {}
    for place in service.networks:
        network: Network = wishes.networks[place.network]
        for vip in place.vips:
            prefix = ipaddress.ip_network(vip)
            lease = Lease(
                network=network.id,
                vni=network.vni,
                prefix=prefix,
                node="",
                epoch=wishes.revision + 1,
                service=service.id,
            )
            new[lease_key(network.id, prefix)] = lease
    given = {key: lease for key, lease in new.items() if key not in old}
    ended: dict[str, object | None] = {key: None for key in old if key not in new}
    guards = [*changes, *(f"network/{place.network}" for place in service.networks)]
    if given or ended:
        changes = changes | {"set/lease": Counter()}
        guards += ["set/lease", *given]
    return Decision(changes | given | ended, guards)
