"""What an error of the database, or of the way to it, means for the request that met it."""

import ssl

from asyncpg import exceptions as pg


class Unusable(ConnectionError):
    """A server that does not do what the URL asks for; an errno, and a text that may be told."""


class NotYet(Exception):
    """A replica that has not replayed what its caller has to see."""


# Waiting cannot mend these, but an operator can, without a restart of ours.
REFUSED = (pg.InvalidAuthorizationSpecificationError, pg.InvalidCatalogNameError)
# TLS that ended in the middle: the server is away.
CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
# Another connection may do it: a primary that became a standby; a statement that was prepared here
# and is not there any more, behind a proxy.
UNFIT = (
    pg.ReadOnlySQLTransactionError,
    pg.InvalidSQLStatementNameError,
    pg.DuplicatePreparedStatementError,
)
# No arguments can mend these: class 42. Row security refuses a row in the same class.
BROKEN, MAY_BE_OF_A_ROW = pg.SyntaxOrAccessError, pg.InsufficientPrivilegeError
# The next attempt may succeed.
TRANSIENT = (
    OSError,  # refused, reset, no such socket, unknown host, TLS; and TimeoutError
    pg.PostgresConnectionError,  # class 08, and what asyncpg says of a lost connection
    pg.TransactionRollbackError,  # class 40: deadlock, serialization failure
    pg.InsufficientResourcesError,  # class 53: too many connections, disk full
    pg.ObjectNotInPrerequisiteStateError,  # class 55: lock not available
    pg.OperatorInterventionError,  # class 57: shutdown, starting up, statement timeout
    pg.InternalClientError,
    pg.TargetServerAttributeNotMatched,  # no primary among the hosts, yet
    *REFUSED,
    *UNFIT,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed on another attempt, perhaps on another connection."""
    if isinstance(error, pg.InterfaceError):
        # asyncpg's own word that a connection is gone, or that the URL cannot be used
        return not isinstance(error, pg.ClientConfigurationError)
    return isinstance(error, TRANSIENT)


def is_locked(error: BaseException) -> bool:
    """Whether the statement waited for a lock for longer than lock_timeout."""
    return isinstance(error, pg.LockNotAvailableError)


def is_too_slow(error: BaseException) -> bool:
    """Whether the server ended the statement at its statement_timeout."""
    return isinstance(error, pg.QueryCanceledError)


def is_unfit(error: BaseException) -> bool:
    """Whether the session cannot be used for another statement."""
    return isinstance(error, UNFIT) or not isinstance(error, pg.PostgresError)


def is_broken(error: BaseException) -> bool:
    """Whether the statement fails whoever asks: no such table, no such column."""
    return isinstance(error, BROKEN) and not isinstance(error, MAY_BE_OF_A_ROW)


def is_unsupported(error: BaseException) -> bool:
    """Whether the server cannot do such a statement; a distributed one cannot do everything."""
    unsupported = isinstance(error, pg.FeatureNotSupportedError)
    return unsupported and not isinstance(error, pg.InvalidCachedStatementError)  # planned anew


def is_away(error: BaseException) -> bool:
    """Whether the server had better be left alone, where there is another that can do the same.

    Not where the statement was too slow, or lost to what a replica replays, or fails for its data;
    nor where there was no time, since that may have gone by in a queue of ours.
    """
    own = isinstance(error, (TimeoutError, pg.TransactionRollbackError)) or is_too_slow(error)
    return not own and (is_transient(error) or isinstance(error, BROKEN))


def is_hopeless(error: BaseException) -> bool:
    """Whether a service that starts had better stop: waiting will not mend this."""
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, CUT_OFF)
    return isinstance(error, (*REFUSED, Unusable)) or not is_transient(error)
