"""Whether the database is there, as far as a worker's connections have found out."""

import asyncio
import math

import asyncpg

from service.database.failures import is_hopeless
from service.observing import DatabaseAway, DatabaseBack, DatabaseLost, Observers

INTERVAL = 30.0  # seconds between two lines that say that it is still away


class Outage:
    """Tells when the database is lost, that it is still away, and when it is back; once each."""

    def __init__(self, hosts: str, observers: Observers) -> None:
        """Tell `observers` of the database on these hosts."""
        self._hosts = hosts
        self._observers = observers
        self._since = math.inf  # loop time at which it was lost
        self._told = math.inf
        self._was_there = False

    def failed(self, error: BaseException) -> None:
        """Note that no connection could be made."""
        if not self._was_there and is_hopeless(error):
            return  # no outage: the start ends with it
        now = asyncio.get_running_loop().time()
        if self._since == math.inf:
            self._since = self._told = now
            self._observers.tell(DatabaseLost(self._hosts, reason(error)))
        elif now - self._told >= INTERVAL:
            self._told = now
            self._observers.tell(DatabaseAway(now - self._since, reason(error)))

    def worked(self) -> None:
        """Note that one was made."""
        self._was_there = True
        if self._since < math.inf:
            seconds = asyncio.get_running_loop().time() - self._since
            self._since = math.inf
            self._observers.tell(DatabaseBack(seconds))


def reason(error: BaseException) -> str:
    """What the database said; of another error only the kind, since its text may quote the URL."""
    if isinstance(error, asyncpg.PostgresError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
