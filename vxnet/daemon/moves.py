"""A cluster's records go to another store: while it runs, from a backup, or from what one member of etcd still has."""

from __future__ import annotations

import contextlib
import secrets
import time

import structlog

from vxnet import __version__
from vxnet.cluster.etcd_store import EtcdStore
from vxnet.core import managership, restoration, trust
from vxnet.daemon.founding import fill, new_store
from vxnet.daemon.inquiry import certificates_held
from vxnet.daemon.manager import Manager
from vxnet.daemon.place import Place
from vxnet.daemon.state import LocalNode, StateDirectory
from vxnet.model.cluster import Node
from vxnet.model.codec import to_json
from vxnet.model.errors import CallerError, ConflictError, UnsupportedError
from vxnet.model.store import Backup, RestoreRequest, StoreAccess, StoreWish

log = structlog.get_logger()


async def back_up(manager: Manager) -> Backup:
    """Also without a quorum; then it may lack what was written last."""
    snapshot = await manager.store.load()
    records = {key: record.value for key, record in snapshot.records.items()}
    return restoration.make_backup(manager.cluster.id, snapshot.revision, records, time.time(), __version__)


async def migrate(state: StateDirectory, place: Place, manager: Manager, wish: StoreWish) -> None:
    """From SQLite to etcd. Commands wait meanwhile. Raises :class:`ConflictError`, :class:`CallerError`, and what the
    new store does; then everything is as before.
    """
    if manager.access is not None:
        raise ConflictError("this cluster's store is etcd already")
    if not wish.store and not wish.managed_etcd:
        raise CallerError("where is the store to go?", hint="--managed-etcd, or --store etcd://HOST:2379,…")
    node = place.node
    async with contextlib.AsyncExitStack() as undo:
        made = await new_store(wish, state, node.name, node.advertise_addr, node.data_path_addr, undo)
        undo.push_async_callback(made.store.close)
        assert made.access is not None
        async with manager.commits.turn:
            snapshot = await manager.store.load()
            records = restoration.without_own({key: record.value for key, record in snapshot.records.items()})
            if made.etcd_ca is not None:
                records["etcd/ca"] = to_json(made.etcd_ca)
            await fill(made.store, records, restoration.next_generation(snapshot.revision, time.time()))
            state.save_store_access(made.access)
            undo.pop_all()
            place.seat.reopen()
            # Nobody may write to the old one any more.
            await manager.close()
    await made.store.close()
    await place.seat.wait_open()
    state.retire_store()
    log.info("store moved", endpoints=", ".join(made.access.endpoints))


async def restore(state: StateDirectory, node: Node, request: RestoreRequest) -> Manager:
    """``node`` is this host, the restored cluster's only manager. Raises as :func:`restoration.check_trusted`,
    :func:`restoration.restored` and what the store does; then nothing of it is left here.
    """
    key = trust.node_key(secrets.token_bytes(32))
    csr = trust.make_csr(key, node.name)
    wishes = restoration.wishes_of(request.backup)
    _, provisional = restoration.restored(request.backup, node, csr, secrets.token_bytes(8), time.time(), {})
    held = await certificates_held(wishes, node, key, provisional)
    log.info("nodes asked for their certificates", answered=len(held), known=len(wishes.nodes))
    if not request.force:
        restoration.check_trusted(wishes, held)
    records, certificate = restoration.restored(request.backup, node, csr, secrets.token_bytes(8), time.time(), held)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(state.forget_cluster)
        made = await new_store(request, state, node.name, node.advertise_addr, node.data_path_addr, undo)
        undo.push_async_callback(made.store.close)
        if made.etcd_ca is not None:
            records["etcd/ca"] = to_json(made.etcd_ca)
        await fill(made.store, records, restoration.next_generation(request.backup.revision, time.time()))
        manager = await Manager.open(made.store, node_id=node.id, key=key, certificate=certificate)
        manager.access = made.access
        if made.access is not None:
            state.save_store_access(made.access)
        state.save_credentials(trust.certificate_to_pem(certificate), trust.key_to_pem(key))
        state.save_local_node(LocalNode(node=manager.node, row_incarnation=1))
        undo.pop_all()
    return manager


async def stay_alone(state: StateDirectory, place: Place) -> Node:
    """Go on as the only manager, from what this one's own member of the store holds. Raises :class:`ConflictError`,
    :class:`UnsupportedError`, :class:`HostError`.
    """
    access = state.store_access()
    if place.node.role != "manager":
        raise ConflictError("this node is a worker: it holds no store to go on from", hint="do it on a manager")
    if access is None:
        raise ConflictError("this cluster has one manager, and its store is a file: there is nothing to force")
    if not access.managed:
        raise UnsupportedError(
            "this cluster's store is an etcd that vxnet does not run: only its own tools can make it whole",
            hint="restore its quorum (`etcdctl snapshot restore`), and the managers go on by themselves",
        )
    access = await place.seat.member.start_alone(access)
    await _begin_anew(access, place.assignment.revision)
    state.save_store_access(access)
    place.seat.reopen()
    await place.seat.wait_open()
    manager = place.manager
    assert manager is not None
    for node in manager.nodes():
        if node.role == "manager" and node.id != place.node.id:
            await manager.commits.decide(
                lambda wishes, id=node.id: managership.demote(wishes, id, manager.alive, managed=False)  # type: ignore[misc]
            )
            log.warning("node is no manager any more", node=node.id, name=node.name)
    log.warning("this node is the only manager now", node=place.node.id)
    return place.node


async def _begin_anew(access: StoreAccess, told: int) -> None:
    """The store's revisions go on above what the lost members may have told: some nodes have heard of more than this
    one's member has, and would take what is new for what is old. ``told``: the last that this node heard of.
    """
    store = await EtcdStore.open(access)
    try:
        known = (await store.load()).revision
        await store.start_from(restoration.next_generation(max(known, told), time.time()))
    finally:
        await store.close()
