"""Statements run again, until one attempt succeeds or the deadline has passed.

Every statement of this service is idempotent, so one whose outcome is unknown may run again.
"""

import asyncio
import random
from collections.abc import Callable, Iterator

import asyncpg

from service.database.connections import Connections
from service.database.failures import is_broken, is_too_slow, is_transient
from service.errors import BrokenStatement, Unavailable

FIRST_PAUSE = 0.05  # seconds; doubled after each attempt, and drawn at random below
LONGEST_PAUSE = 1.0

AWAY = "the database is not available, try again later"


def pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt.

    The first is at once, since an idle connection may have died; then longer and longer ones.
    """
    yield 0.0
    longest = FIRST_PAUSE
    while True:
        yield random.uniform(0, longest)
        longest = min(longest * 2, LONGEST_PAUSE)


async def fetch(
    connections: Connections,
    query: str,
    *args: object,
    deadline: float,
    tell: Callable[[float, str | None], None] = lambda *_: None,
) -> list[asyncpg.Record]:
    """Run a statement, again and again until it succeeds or `deadline` (loop time).

    One that runs into the server's time limit is not repeated: it is too much to ask, and the more
    so the next time. After each attempt `tell` is given the loop time at which it began, and, if it
    failed, the kind of error.

    Raises:
        Unavailable: no attempt succeeded; the cause is the last one's error.
        BrokenStatement: it can never succeed, with these arguments or others.
        asyncpg.PostgresError: it can never succeed with these arguments.
    """
    loop = asyncio.get_running_loop()
    for pause in pauses():
        started = loop.time()
        failure: str | None = None
        try:
            return await connections.fetch(query, *args, seconds=deadline - started)
        except Exception as error:
            failure = type(error).__name__
            if is_broken(error):
                raise BrokenStatement(str(error)) from error
            if not is_transient(error):
                raise
            if is_too_slow(error) or loop.time() + pause >= deadline:
                raise Unavailable(AWAY, failure) from error
        finally:
            tell(started, failure)
        await asyncio.sleep(pause)
    raise AssertionError("pauses() never ends")
