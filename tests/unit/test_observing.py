"""service.observing: what is told reaches who listens to it; and the log is one that listens."""

import pytest

from service import logs
from service.observing import (
    DatabaseAway,
    DatabaseBack,
    DatabaseLost,
    KeyFileFailed,
    KeyFileRead,
    KeySetEnded,
    KeySetFailed,
    KeySetFetched,
    KeySkipped,
    Observers,
)


def test_each_listener_hears_what_it_listens_to() -> None:
    """All listeners of the type, in their order; nobody else."""
    heard: list[tuple[str, object]] = []
    observers = Observers()
    observers.listen(KeySetFetched, lambda it: heard.append(("first", it.keys)))
    observers.listen(DatabaseBack, lambda it: heard.append(("other", it)))
    observers.listen(KeySetFetched, lambda it: heard.append(("second", it.keys)))
    observers.tell(KeySetFetched(2, changed=True))
    observers.tell(KeySkipped("nobody listens"))
    assert heard == [("first", 2), ("second", 2)]


@pytest.mark.parametrize(
    ("observation", "level", "message"),
    [
        (DatabaseLost("db:5432", "refused"), "WARNING", "database lost: db:5432: refused"),
        (DatabaseAway(61.7, "refused"), "WARNING", "database away for 62 s: refused"),
        (DatabaseBack(73.21), "INFO", "database back after 73.2 s"),
        (KeyFileRead("auth.secret_file", 2), "INFO", "auth.secret_file: 2 keys"),
        (
            KeyFileFailed("auth.secret_file: too short"),
            "ERROR",
            "auth.secret_file: too short; the keys before stay in force",
        ),
        (KeySetFetched(2, changed=True), "INFO", "auth.jwks_url: 2 keys"),
        (
            KeySetFailed("keys:443", "too large"),
            "WARNING",
            "cannot fetch auth.jwks_url from keys:443: too large",
        ),
        (
            KeySetEnded(60.0),
            "ERROR",
            "auth.jwks_url: no fetch succeeded for 60 s, its keys end",
        ),
        (
            KeySkipped("InvalidKeyError"),
            "WARNING",
            "auth.jwks_url: skipped a malformed key: InvalidKeyError",
        ),
    ],
)
def test_the_log_has_a_line_for_events(
    observation: object, level: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line each, with what the operator has to know."""
    caplog.set_level("INFO")
    observers = Observers()
    logs.listen(observers)
    observers.tell(observation)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (level, message)
    ]


def test_a_key_set_as_it_was_has_no_line(caplog: pytest.LogCaptureFixture) -> None:
    """It is fetched every few minutes."""
    caplog.set_level("INFO")
    observers = Observers()
    logs.listen(observers)
    observers.tell(KeySetFetched(2, changed=False))
    assert not caplog.records
