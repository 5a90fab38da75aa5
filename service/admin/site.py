"""The operator's port: /live, /ready and /metrics, apart from the public one."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from service import config as configuration
from service.admin.health import Health
from service.admin.metrics import Metrics
from service.config import Config
from service.observing import Observers
from service.web.answers import common_headers, error_response
from service.web.cors import Cors
from service.web.middlewares import answer_errors
from service.web.protocol import Runner
from service.web.terms import Terms

HEALTH = web.AppKey("health", Health)
METRICS = web.AppKey("metrics", Metrics)
RUNNER = web.AppKey("runner", Runner)


async def live(_: web.Request) -> web.Response:
    """GET /live: the process answers, whatever its database does."""
    return web.json_response({"live": True})


async def ready(request: web.Request) -> web.Response:
    """GET /ready: requests can be served; else 503, and why not. A replica is not needed."""
    problem = await request.app[HEALTH].problem()
    if problem:
        return error_response(503, problem)
    answer: dict[str, object] = {"ready": True}
    if replica := request.app[HEALTH].replica:
        state = {"lag": round(replica.lag, 1)} if replica.is_used else {"reason": replica.problem}
        answer["replica"] = {"used": replica.is_used, **state}
    return web.json_response(answer)


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: what all workers have counted, for Prometheus."""
    problem = await request.app[HEALTH].database_problem()
    accept = request.headers.get(hdrs.ACCEPT, "")
    text, content_type = request.app[METRICS].expose(accept, database_up=problem is None)
    return web.Response(body=text, headers={hdrs.CONTENT_TYPE: content_type})


@contextlib.asynccontextmanager
async def serve(app: web.Application, config: Config) -> AsyncIterator[None]:
    """Be able to answer on the operator's port while the context lasts; `app[RUNNER]` listens."""
    server, limits = config.server, config.limits
    admin = web.Application(middlewares=[answer_errors])
    admin[HEALTH] = app[HEALTH]
    admin[METRICS] = app[METRICS]
    admin.add_routes(
        [web.get("/live", live), web.get("/ready", ready), web.get("/metrics", metrics)]
    )
    admin.on_response_prepare.append(common_headers)
    app[RUNNER] = runner = Runner(
        admin,
        # No page calls, and probes have no line in the log.
        Terms(Cors(configuration.Cors()), Observers(), server.max_header_size, limits.deadline),
        keepalive=server.keepalive,
        shutdown_timeout=1,
    )
    await runner.setup()
    try:
        yield
    finally:
        await runner.cleanup()
