"""The managers' records in another store: moved under load, restored on a new host, forced from what one host has."""

from __future__ import annotations

import pytest

from tests.system.fetches import PORT, SERVER, Fetches
from tests.system.managers import client, make_network, members, until
from vxnet.model.api import InitRequest, JoinRequest, NetworkCreate
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError
from vxnet.model.service import ServiceSpec, TaskSpec
from vxnet.model.store import RestoreRequest, StoreWish

pytestmark = [pytest.mark.lab, pytest.mark.slow]


RATE_HZ = 25
"""Requests a second of each of three hosts."""


def overlays(asked):
    return {net.name for net in asked.networks() if net.vni}


def test_a_cluster_moves_and_is_restored(make_lab):
    lab = make_lab(hosts=4)
    first, spare = client(lab["h1"]), client(lab["h4"])
    spare.leave()
    first.create_network(NetworkCreate(name="blue", attachable=True))
    blue = (NetworkWish(network="blue"),)
    task = TaskSpec(container=ContainerSpec(argv=("python3", "-c", SERVER), networks=blue))
    first.create_service(ServiceSpec(name="web", replicas=3, task=task))
    until(lambda: sum(view.state == "running" for view in first.tasks_of_service("web")) == 3, "the service runs")
    for name in ("h1", "h2", "h3"):
        probe = ContainerSpec(name="probe", argv=("sleep", "100000"), networks=blue)
        client(lab[name]).create_container(probe, start=True)
        fetch = ["vxnet", "exec", "probe", "curl", "-s", "-m", "5", f"http://web:{PORT}"]
        until(lambda name=name, fetch=fetch: lab.run(name, fetch).returncode == 0, "the service answers")

    fetches = [Fetches(lab, name, "probe", "web", RATE_HZ) for name in ("h1", "h2", "h3")]
    # A backup from before the CA was replaced, with the gossip's present keys: one was made since h4 left.
    until(lambda: first.rotation().epoch == 2 and first.rotation().in_use, "the gossip has another key")
    outdated = first.back_up_store()
    first.rotate_ca()

    # To etcd; and then there can be two managers.
    with pytest.raises(CallerError, match="where is the store to go"):
        first.migrate_store(StoreWish())
    first.migrate_store(StoreWish(managed_etcd=True))
    with pytest.raises(ConflictError, match="etcd already"):
        first.migrate_store(StoreWish(managed_etcd=True))
    make_network(lab["h1"], "after-move")
    first.set_role("h2", "manager")
    until(lambda: client(lab["h2"]).nodes(), "h2 is a manager")
    until(lambda: "after-move" in {net.name for net in client(lab["h3"]).networks()}, "h3 follows")

    until(lambda: len(first.ca().authorities) == 1, "the CA has been replaced")
    for found in [one.stop() for one in fetches]:
        print(f"{found.asked} requests, {found.rate:.0f} a second")
        assert found.asked > RATE_HZ and found.failed == []

    # All managers are destroyed; a host that was none is the new one.
    backup = first.back_up_store()
    ran = {one.id: one.started_at for one in client(lab["h3"]).containers()}
    for name in ("h1", "h2"):
        lab.kill(name)
    with pytest.raises(ConflictError, match=r"CA was replaced .* h3 would trust no manager that is made of it"):
        spare.restore_store(RestoreRequest(backup=outdated, advertise_addr=str(lab["h4"].address)))
    with pytest.raises(CallerError, match="damaged"):
        spare.restore_store(RestoreRequest(backup=type(backup)(**{**_fields(backup), "digest": "0"})))
    spare.restore_store(RestoreRequest(backup=backup, advertise_addr=str(lab["h4"].address)))
    make_network(lab["h4"], "after-restore")
    until(lambda: "after-restore" in {net.name for net in client(lab["h3"]).networks()}, "h3 finds the new manager")
    assert ran.items() <= {one.id: one.started_at for one in client(lab["h3"]).containers()}.items()
    made = {net.name: net.vni for net in spare.networks() if net.vni}
    assert len({*made.values()}) == len(made)


def _fields(record):
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_one_manager_goes_on_alone(make_lab):
    """With less than the others had told: what the nodes have heard of that is void."""
    lab = make_lab(hosts=4, managers=3)
    last, worker = client(lab["h2"]), client(lab["h4"])
    until(lambda: len(members(lab["h2"])) == 3, "all members of etcd have a vote, its own too")
    # By its own member, which knows of the vote itself then.
    make_network(lab["h2"], "blue")
    with pytest.raises(ConflictError, match="this node is a worker"):
        worker.init(InitRequest(force_new_cluster=True))
    lab.cut("h2")
    for number in range(20):
        make_network(lab["h1"], f"lost{number}")
    until(lambda: "lost19" in {net.name for net in worker.networks()}, "the worker has heard what h2 has not")
    for name in ("h1", "h3"):
        lab.kill(name)
    lab.heal("h2")
    until(lambda: last.init(InitRequest(force_new_cluster=True)), "h2 goes on alone")
    make_network(lab["h2"], "alone")
    assert [view.node.name for view in last.nodes() if view.node.role == "manager"] == ["h2"]
    for host in (last, worker):
        until(lambda host=host: overlays(host) == {"ingress", "blue", "alone"}, "it knows what h2 had, and no more")
    token = last.join_token("worker", rotate=True)
    with pytest.raises(ConflictError, match="already in a cluster"):
        worker.join(JoinRequest(token=token, manager=str(lab["h2"].address)))
