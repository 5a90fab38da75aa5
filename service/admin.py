"""The operator's port: /live and /ready, apart from the public one."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from service.answers import common_headers, error_response
from service.config import Config
from service.health import Health
from service.middlewares import errors

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
async def serve(app: web.Application, config: Config, *, shared: bool) -> AsyncIterator[None]:
    """Answer on the operator's port while the context lasts.

    Where it is `shared`, each worker answers for all, and one that shuts down no longer.
    """
    health = app[HEALTH]
    admin = web.Application(middlewares=[errors])
    admin[HEALTH] = health
    admin.add_routes([web.get("/live", live), web.get("/ready", ready)])
    admin.on_response_prepare.append(common_headers)
    runner = web.AppRunner(admin, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, config.admin.host, config.admin.port, reuse_port=shared or None)

    async def shut_down(_: web.Application) -> None:
        health.shutting_down = True
        if shared:
            await runner.cleanup()

    app.on_shutdown.append(shut_down)
    try:
        await site.start()
        yield
    finally:
        await runner.cleanup()
