"""A service that the tests of one module share: to start one takes longer than most tests do."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.conftest import ROLE, Sandbox, Service, connect, new_database
from tests.support.cluster import Cluster

Client = TestClient[Any, Any]

_numbers = itertools.count()


@dataclass
class Shared:
    """A running service and its database, with the data of tests/support/data.sql."""

    client: Client
    database: Sandbox


@contextlib.asynccontextmanager
async def serve(cluster: Cluster, **environ: str) -> AsyncIterator[Shared]:
    """Start a service on a database of its own; keywords are variables: CORS_ORIGINS="..."."""
    name = f"shared_{next(_numbers)}"
    async with contextlib.AsyncExitStack() as stack:
        url = stack.enter_context(new_database(cluster, name))
        owner = await connect(url)
        stack.push_async_callback(owner.close)
        database = Sandbox(cluster.url(name, ROLE), url, owner)
        client = await stack.enter_async_context(TestClient(Service(database.url, environ)))
        yield Shared(client, database)


def clean() -> tuple[Any, Any]:
    """Fixtures for a module that has a `shared` one: its database, nothing marked, and a client."""

    @pytest.fixture
    async def database(shared: Shared) -> Sandbox:
        await shared.database.owner.execute("delete from system_event_read")
        return shared.database

    @pytest.fixture
    def client(shared: Shared, database: Sandbox) -> Client:
        return shared.client

    return database, client


def server_of(client: Client) -> web.Server:
    """What takes the connections of a service that runs in this process."""
    runner = cast("TestServer", client.server).runner
    assert runner is not None
    assert runner.server is not None
    return runner.server


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
