"""POST and DELETE /systemevent/read: the contract, corner by corner."""

from typing import Any

from aiohttp.test_utils import TestClient

from tests.conftest import Database, bearer

Client = TestClient[Any, Any]


async def test_marks_events_of_the_callers_organization_only(
    client: Client, database: Database
) -> None:
    """Ids that only another organization has write nothing."""
    answer = await client.post("/systemevent/read", json={"ids": [1, 2, 25]}, headers=bearer())
    assert (answer.status, await answer.json()) == (200, {"success": True})
    assert await database.read_rows() == {("acme", "alice", 1), ("acme", "alice", 2)}
