"""The operator's port: /live and /ready, apart from the public one."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from service.config import Config
from service.errors import error_response
from service.health import Health

HEALTH = web.AppKey("health", Health)


async def live(_: web.Request) -> web.Response:
    """GET /live: the process answers, whatever its database does."""
    return web.json_response({"live": True})


async def ready(request: web.Request) -> web.Response:
    """GET /ready: requests can be served; else 503, and why not."""
    problem = await request.app[HEALTH].problem()
    if problem:
        return error_response(503, problem)
    return web.json_response({"ready": True})


@contextlib.asynccontextmanager
async def serve(app: web.Application, config: Config) -> AsyncIterator[None]:
    """Answer on the operator's port while the context lasts."""
    admin = web.Application()
    admin[HEALTH] = app[HEALTH]
    admin.add_routes([web.get("/live", live), web.get("/ready", ready)])
    runner = web.AppRunner(admin, access_log=None, shutdown_timeout=1)
    await runner.setup()
    # Workers share the port: each can answer for all.
    share = config.server.workers > 1 or None
    site = web.TCPSite(runner, config.admin.host, config.admin.port, reuse_port=share)
    try:
        await site.start()
        yield
    finally:
        await runner.cleanup()
