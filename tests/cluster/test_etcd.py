"""What answers at an endpoint and is no etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from vxnet.cluster.etcd import Etcd
from vxnet.model.errors import UnavailableError
from vxnet.model.store import StoreAccess


@pytest.fixture
async def endpoint() -> AsyncIterator[str]:
    """Of a server that has a page for everything."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>welcome</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_page_is_no_answer(endpoint: str) -> None:
    """It ends no daemon: another member may be one."""
    etcd = Etcd(StoreAccess(endpoints=(endpoint,)))
    with pytest.raises(UnavailableError, match="store did not answer"):
        await etcd.call("/v3/kv/range", {"key": b"vxnet"}, dict, within_s=0.3)
    await etcd.close()
