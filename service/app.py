"""The wiring: what is made of what, and which path leads where."""

import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import aiohttp_cors
from aiohttp import web
from aiohttp.typedefs import Handler

from service import admin, demo, handlers
from service.answers import EXPOSED_HEADERS, Success, common_headers
from service.body import max_body_size
from service.config import Config
from service.database import WRITE_SETTINGS, Database
from service.errors import ConfigError
from service.group_commit import GroupCommit, Statement
from service.handlers import CONFIG, MARK_READ, MARK_UNREAD, QUERIES, READS, SUCCESS
from service.health import Health
from service.jwks import Jwks
from service.keys import Keys, load_key
from service.middlewares import bearer, errors
from service.protocol import Runner
from service.queries import load_queries
from service.tokens import Tokens


def create_app(
    config: Config, database_url: str, give_up: Callable[[ConfigError], None], *, shared: bool
) -> web.Application:
    """Build the application that serves `config` on the database at `database_url`.

    Where `shared`, other workers have the operator's port as well. `give_up` is called when it
    turns out, while it runs, that it cannot work and that waiting is in vain.

    Raises:
        ConfigError: a key file cannot be used.
    """
    queries = load_queries()
    # Marking has connections of its own: however many lists are asked for, they do not delay it.
    writes = Database(config.database, database_url, 2 * config.commit.in_flight, WRITE_SETTINGS)
    reads = Database(config.database, database_url, config.database.pool_size, {}, retry_slow=False)
    # And so has /ready, which could not get a word in otherwise.
    probe = Database(config.database, database_url, 1, WRITE_SETTINGS)
    keys: Keys = (
        Jwks(config.auth.jwks_url, config.auth.algorithms)
        if config.auth.jwks_url
        else load_key(config.auth)
    )
    tokens = Tokens(config.auth, keys)
    if isinstance(keys, Jwks):
        keys.on_change = tokens.forget
    health = Health(queries, probe, keys, give_up)

    app = web.Application(client_max_size=max_body_size(config.limits))
    app[CONFIG] = config
    app[admin.HEALTH] = health
    for key, query in ((MARK_READ, queries.mark_read), (MARK_UNREAD, queries.mark_unread)):
        app[key] = GroupCommit(
            _statement(writes, query),
            config.commit,
            max_queued_ids=100 * config.limits.max_ids,
        )

    app[SUCCESS] = Success(config.cors.origins)
    app[READS] = reads
    app[QUERIES] = queries

    routes = [
        web.post("/systemevent", handlers.list_events),
        web.post("/systemevent/read", handlers.mark_read),
        web.delete("/systemevent/read", handlers.mark_unread),
    ]
    public: set[Handler] = {handlers.openapi}
    app.add_routes([web.get("/openapi.yaml", handlers.openapi, allow_head=False)])
    if not config.database.url:
        demo_routes = demo.routes(config, reads)
        app.add_routes(demo_routes)
        public.update(route.handler for route in demo_routes)
    _allow_origins(app, app.add_routes(routes), config.cors.origins)
    app.middlewares.extend((errors, bearer(tokens, frozenset(public))))
    app.on_response_prepare.append(common_headers)

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for database in (writes, reads, probe):
                stack.push_async_callback(database.close)
            if isinstance(keys, Jwks):
                await stack.enter_async_context(keys.run())
            for commit in (app[MARK_READ], app[MARK_UNREAD]):
                # Callers who hung up have still asked; bounded by their deadlines.
                stack.push_async_callback(commit.drain)
            await stack.enter_async_context(admin.serve(app, config, shared=shared))
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
    database_url: str,
    give_up: Callable[[ConfigError], None],
    *,
    shared: bool = False,
) -> Runner:
    """Build the application, and what serves it on a socket."""
    return Runner(
        create_app(config, database_url, give_up, shared=shared),
        keepalive=config.server.keepalive,
        shutdown_timeout=config.limits.deadline + 1,
    )


def _statement(database: Database, query: str) -> Statement:
    """Bind a query for many callers to its database, in the shape that group commit asks for."""

    async def run(
        callers: Sequence[str], owners: Sequence[str], ids: Sequence[int], deadline: float
    ) -> Mapping[str, str | None]:
        rows = await database.fetch(query, callers, owners, ids, deadline=deadline)
        return {row["user_id"]: row["organization_id"] for row in rows}

    return run


def _allow_origins(
    app: web.Application, routes: Sequence[web.AbstractRoute], origins: Sequence[str]
) -> None:
    """Let pages of these origins call (Fetch, section 3.2), with a token and without cookies."""
    if not origins:
        return
    options = aiohttp_cors.ResourceOptions(
        allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
        expose_headers=EXPOSED_HEADERS,
        max_age=600,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in routes:
        cors.add(route)

    async def vary(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Vary"] = "Origin"

    app.on_response_prepare.append(vary)
