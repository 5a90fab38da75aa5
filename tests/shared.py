"""A service that the tests of one module share: to start one takes longer than most tests do."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from tests.cluster import Cluster
from tests.conftest import ROLE, Database, Service

Client = TestClient[Any, Any]

_numbers = itertools.count()


@dataclass
class Shared:
    """A running service, and the database that it serves, with the data of tests/data.sql."""

    client: Client
    database: Database


@contextlib.asynccontextmanager
async def serve(cluster: Cluster, **environ: str) -> AsyncIterator[Shared]:
    """Start a service on a database of its own; keywords are variables: CORS_ORIGINS="..."."""
    name = f"shared_{next(_numbers)}"
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncpg.connect(cluster.url())
        stack.push_async_callback(server.close)
        await server.execute(f"create database {name} template template_migrated")
        stack.push_async_callback(server.execute, f"drop database {name} with (force)")
        owner = await asyncpg.connect(cluster.url(name))
        stack.push_async_callback(owner.close)
        database = Database(cluster.url(name, ROLE), cluster.url(name), owner)
        client = await stack.enter_async_context(TestClient(Service(database.url, environ)))
        yield Shared(client, database)


def clean() -> tuple[Any, Any]:
    """Fixtures for a module that has a `shared` one: its database, nothing marked, and a client."""

    @pytest.fixture
    async def database(shared: Shared) -> Database:
        await shared.database.owner.execute("delete from system_event_read")
        return shared.database

    @pytest.fixture
    def client(shared: Shared, database: Database) -> Client:
        return shared.client

    return database, client


async def refused(answer: aiohttp.ClientResponse) -> str:
    """Check that an answer has the one shape of those that are not 2xx; its message."""
    assert answer.status >= 400
    assert answer.content_type == "application/json"
    body = await answer.json()
    assert list(body) == ["error"]
    message = body["error"]
    assert isinstance(message, str)
    assert message
    return message
