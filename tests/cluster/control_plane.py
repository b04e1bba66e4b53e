"""A real manager on a real store behind real TLS on loopback, which a test can stop, freeze and start again."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress

from vxnet.cluster import control
from vxnet.cluster.api import serving
from vxnet.cluster.manager_api import listen, make_manager_app
from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.cluster.tls import Credentials, server_context
from vxnet.core import trust
from vxnet.daemon.manager import Manager
from vxnet.model.api import JoinClaim
from vxnet.model.cluster import Manager as ManagerPlace

LOOPBACK = ipaddress.ip_address("127.0.0.1")
DEADLINE_S = 20


class ControlPlane:
    def __init__(self, path):
        self.path = path
        self.port = 0
        self.key = trust.node_key(b"m" * 32)
        self._stack = contextlib.AsyncExitStack()

    async def create(self):
        self.store = await SqliteStore.open(self.path)
        self.manager = await Manager.create(
            self.store,
            name="h1",
            advertise_addr=ipaddress.ip_address("192.0.2.1"),
            data_path_addr=ipaddress.ip_address("192.0.2.1"),
            key=self.key,
        )
        self._task = asyncio.create_task(self.manager.run())
        await self.serve()
        return self

    async def serve(self):
        """On the port of before."""
        listener = listen(LOOPBACK, self.port)
        self.port = listener.getsockname()[1]
        credentials = Credentials(trust.certificate_to_pem(self.manager.certificate), trust.key_to_pem(self.key))
        self.context = server_context(credentials, self.manager.roots)
        self._serving = asyncio.Event()
        self._server = asyncio.create_task(self._serve(listener, self._serving))

    async def _serve(self, listener, stop):
        async with serving(make_manager_app(self.manager), listener, tls=self.context):
            await stop.wait()

    async def unserve(self):
        self._serving.set()
        await asyncio.wait_for(self._server, DEADLINE_S)

    async def close(self):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.unserve()
        await self.store.close()

    @property
    def token(self):
        return trust.parse_token(self.manager.join_token("worker"))

    def place(self, **changes):
        """As an assignment tells where a manager is."""
        return ManagerPlace(
            **({"id": self.manager.node_id, "name": "h1", "addr": LOOPBACK, "port": self.port} | changes)
        )

    def claim(self, number, key, **changes):
        address = ipaddress.ip_address(f"192.0.2.{number}")
        fields = {
            "secret": self.token.secret,
            "csr": trust.make_csr(key, f"h{number}"),
            "name": f"h{number}",
            "advertise_addr": address,
            "data_path_addr": address,
        }
        return JoinClaim(**(fields | changes))

    async def join(self, number):
        """A worker, over the wire."""
        key = trust.node_key(bytes([number]) * 32)
        roots = await control.fetch_roots("127.0.0.1", self.port, self.token)
        grant = await control.join("127.0.0.1", self.port, roots, self.claim(number, key))
        return Worker(self, key, grant)


class Worker:
    def __init__(self, plane, key, grant):
        self.id, self.key, self.grant = grant.node.id, key, grant
        self.client = control.ManagerClient(
            self.id,
            [plane.place()],
            certificate=grant.certificate,
            key=trust.key_to_pem(key),
            roots=grant.assignment.roots,
        )

    @property
    def credentials(self):
        return Credentials(trust.certificate_to_pem(self.grant.certificate), trust.key_to_pem(self.key))
