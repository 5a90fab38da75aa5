"""The wiring: what is made of what, and which path leads where."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Sequence

import asyncpg
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from service import logs
from service.admin import site as admin
from service.admin.board import Board, Place
from service.admin.health import Health
from service.admin.metrics import Metrics
from service.auth.jwks import Jwks
from service.auth.keys import FixedKeys, load_key
from service.auth.tokens import Tokens
from service.config import Config
from service.database.connections import Connections
from service.database.connector import Connector
from service.database.group_commit import GroupCommit, Statement
from service.database.outage import Outage
from service.database.pools import Pools
from service.database.queries import Queries, load_queries
from service.database.replica import Replica
from service.endpoints import openapi
from service.endpoints.count import Count
from service.endpoints.filters import ALL
from service.endpoints.list import List
from service.endpoints.mark import Mark
from service.endpoints.mark_all import MarkAll
from service.endpoints.one_caller import Nearby, OneCaller, TurnsByOrganization
from service.errors import ConfigError
from service.observing import Observers
from service.turns import Turns
from service.web.answers import Success, common_headers
from service.web.body import max_body_size
from service.web.cors import Cors
from service.web.marked import Marked
from service.web.middlewares import answer_errors, bearer
from service.web.protocol import Runner
from service.web.request_info import RequestInfo
from service.web.request_log import RequestLog
from service.web.terms import Terms, most_connections

PATIENCE = 3.0  # seconds in which a new configuration must be able to serve
NO_MARKS: Sequence[object] = ([], [], "")
# With an organization, since a distributed database refuses the statements without one.
NOBODY: Sequence[object] = ("", "", *msgspec.structs.astuple(ALL))
# What demo mode adds: public routes, which read from the database as well.
Demo = Callable[[Config, Connections], Sequence[web.RouteDef]]


def create_app(
    config: Config,
    observers: Observers,
    give_up: Callable[[ConfigError], None],
    *,
    keys: FixedKeys | None = None,
    place: Place | None = None,
    demo: Demo | None = None,
) -> web.Application:
    """Build the application.

    `observers` are told what happens. `give_up` is called when it turns out, while it runs, that it
    cannot work and that waiting will not help. `keys` are those that are read already, if any; a
    `place` is where it counts, beside others of the same service.

    Raises:
        ConfigError: a key file, or the URL of the database, cannot be used.
    """
    queries, limits = load_queries(), config.limits
    connector = Connector(config.database)
    pools = Pools(config, queries, connector, Outage(connector.hosts, observers))
    source = _keys(config, observers, keys)
    tokens = Tokens(config.auth, source)
    source.on_change = tokens.forget
    health = Health(queries, _probes(queries), pools.probe, source, give_up)
    marking, unmarking = (
        GroupCommit(
            kind,
            _statement(pools.writes, query),
            _statement(pools.apart, query),
            config.commit,
            limits,
            observers,
        )
        for kind, query in (("read", queries.mark_read), ("unread", queries.mark_unread))
    )
    reading = OneCaller(
        "list",
        limits,
        pools.reads,
        queries,
        observers,
        TurnsByOrganization(config.database.pool_size, pools.counts, queries),
    )
    counting = OneCaller("list", limits, pools.counts, queries, observers, Turns(1))
    marking_all = OneCaller("mark_all", limits, pools.mark_all, queries, observers, Turns(1))
    place = place or Board(1).take()
    marked = None
    if replica := _replica(config, queries, pools, observers):
        marked = Marked(replica.now, place.board.marked)
        reading.nearby = Nearby(replica, replica.reads, marked)
        counting.nearby = Nearby(replica, replica.counts, marked)
        health.replica = replica
    cors = Cors(config.cors)
    success = Success(cors, marked)

    app = web.Application(client_max_size=max_body_size(limits))
    app[admin.HEALTH] = health
    routes = [
        web.post("/systemevent", List(reading).answer),
        web.post("/systemevent/count", Count(counting).answer),
        web.post(
            "/systemevent/read", Mark(limits, marking, success, needs_organization=True).answer
        ),
        web.post("/systemevent/read/all", MarkAll(marking_all, success, marking).answer),
        # Contract, section 2: a user without an organization has nothing to remove.
        web.delete(
            "/systemevent/read", Mark(limits, unmarking, success, needs_organization=False).answer
        ),
    ]
    public: set[Handler] = {openapi.answer}
    app.add_routes([web.get("/openapi.yaml", openapi.answer, allow_head=False)])
    if demo:
        demo_routes = demo(config, pools.reads)
        app.add_routes(demo_routes)
        public.update(route.handler for route in demo_routes)
    app.add_routes(routes)
    app.middlewares.extend(
        (answer_errors, bearer(tokens, frozenset(public), cors, limits, most_connections()))
    )
    app.on_response_prepare.extend((common_headers, cors.add_headers))

    paths = frozenset(route.canonical for route in app.router.resources())
    metrics = Metrics(place, paths, pools, tokens, (marking, unmarking), replica)
    metrics.listen(observers)
    app[admin.METRICS] = metrics

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(pools.close)
            await stack.enter_async_context(source.run())
            for commit in (marking, unmarking):
                # Callers who hung up have still asked; bounded by their deadlines.
                stack.push_async_callback(commit.drain)
            await stack.enter_async_context(admin.serve(app, config))
            await stack.enter_async_context(metrics.watch())
            await stack.enter_async_context(health.watch())
            # What is alive now stays so; the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 50)
            yield

    app.cleanup_ctx.append(run)
    return app


def create_runner(
    config: Config,
    give_up: Callable[[ConfigError], None],
    *,
    keys: FixedKeys | None = None,
    place: Place | None = None,
    demo: Demo | None = None,
) -> Runner:
    """Build the application, and what serves it on a socket."""
    observers = Observers()
    logs.listen(observers)
    if config.logging.level in ("debug", "info"):
        observers.listen(RequestInfo, RequestLog())
    return Runner(
        create_app(config, observers, give_up, keys=keys, place=place, demo=demo),
        Terms(Cors(config.cors), observers, config.server.max_header_size, config.limits.deadline),
        keepalive=config.server.keepalive,
        shutdown_timeout=config.limits.deadline + 1,
    )


async def try_out(config: Config, keys: FixedKeys | None) -> None:
    """Ask the database, and the key server, whether an application of this configuration can serve.

    Raises:
        ConfigError: why it cannot.
    """
    queries, observers = load_queries(), Observers()
    connector = Connector(config.database)
    pools = Pools(config, queries, connector, Outage(connector.hosts, observers))
    source = _keys(config, observers, keys)
    health = Health(queries, _probes(queries), pools.probe, source, lambda _: None)
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    try:
        async with source.run():
            while problem := await health.problem():
                if loop.time() > end:
                    raise ConfigError(problem)
                await asyncio.sleep(0.1)
    finally:
        await pools.close()


def _replica(
    config: Config, queries: Queries, pools: Pools, observers: Observers
) -> Replica | None:
    """The replica, if there is one, with its connections among the others."""
    if not config.database.read_url:
        return None
    replica = Replica(config, queries, pools.position, _reads(queries), observers)
    pools.named.update(replica.named, position=pools.position)
    return replica


def _keys(config: Config, observers: Observers, known: FixedKeys | None) -> Jwks | FixedKeys:
    auth = config.auth
    if not auth.jwks_url:
        known = known or load_key(auth)
        known.observers = observers
        return known
    return Jwks(auth.jwks_url, auth.algorithms, max_age=auth.jwks_max_age, observers=observers)


def _probes(queries: Queries) -> Sequence[tuple[str, Sequence[object]]]:
    """The endpoints' statements, each with arguments that do nothing for nobody."""
    return [
        (queries.mark_read, NO_MARKS),
        (queries.mark_unread, NO_MARKS),
        *_reads(queries),
        (queries.caller, ("",)),
        (queries.place, ("", "", 0)),
        (queries.mark_all, (*NOBODY, None, 0, None, 0, 0)),
    ]


def _reads(queries: Queries) -> Sequence[tuple[str, Sequence[object]]]:
    """Those of them that a replica can do."""
    return [
        (queries.list_events, (*NOBODY, False, 0, 0, 0)),
        (queries.page_events, (*NOBODY, False, None, 0, 0, 0)),
        (queries.count_unread, (*NOBODY, 0)),
    ]


def _statement(connections: Connections, query: str) -> Statement:
    """Bind a query for many callers to its connections, in the shape that group commit asks for."""

    async def run(
        callers: Sequence[str], owners: Sequence[str], ids: Sequence[int], seconds: float
    ) -> list[asyncpg.Record]:
        numbers = ",".join(map(str, ids))
        return await connections.fetch(query, callers, owners, numbers, seconds=seconds)

    return run
