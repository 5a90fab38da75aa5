"""An outage is told once when it begins, at intervals, and once when it ends."""

import pytest

from service.database import outage
from service.database.outage import Outage
from service.observing import DatabaseAway, DatabaseBack, DatabaseLost, Observers

HOSTS = "db1:5432,db2:5433"


async def test_an_outage_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    observers = Observers()
    observers.listen(DatabaseLost, told.append)
    observers.listen(DatabaseAway, told.append)
    observers.listen(DatabaseBack, told.append)
    database = Outage(HOSTS, observers)
    database.worked()
    for _ in range(100):
        database.failed(ConnectionRefusedError(111, "Connection refused"))
    assert told == [DatabaseLost(HOSTS, "Connection refused")]

    monkeypatch.setattr(outage, "INTERVAL", 0)
    database.failed(TimeoutError())
    assert [type(it) for it in told[1:]] == [DatabaseAway]
    database.worked()
    database.worked()
    assert [type(it) for it in told[2:]] == [DatabaseBack]
