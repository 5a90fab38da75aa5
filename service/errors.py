"""What can go wrong for a caller, each with its status.

Handlers and the parts below raise; web/middlewares.py answers. What is not listed here is
internal: 500, logged, and never described to the caller.
"""

import re
from typing import ClassVar


class ConfigError(Exception):
    """The service cannot start as configured; the text names the key."""


class BrokenStatement(Exception):
    """A statement that fails whoever asks: no such table or column. A fault of ours: 500."""


class Refusal(Exception):
    """An answer that is not 2xx. Subclasses fix the status; the text is the caller's message.

    `cause` says why in a few fixed words, for the log and the metrics; never a caller's value.
    """

    status: ClassVar[int]

    def __init__(self, message: str, cause: str = "") -> None:
        """Refuse; without a `cause` it is the name of the class, in words."""
        super().__init__(message)
        self.cause = cause or re.sub(r"\B([A-Z])", r" \1", type(self).__name__).lower()

    def headers(self) -> dict[str, str]:
        """Headers that this status owes its reader."""
        return {}


class InvalidBody(Refusal):
    """The body is missing or malformed, holds no valid id, or has a field that cannot be used."""

    status = 400


class InvalidHeader(Refusal):
    """A header that we must echo or compare is not ASCII."""

    status = 400


class Unauthenticated(Refusal):
    """No bearer token at all (RFC 6750, section 3.1: no error code then)."""

    status = 401

    def headers(self) -> dict[str, str]:  # noqa: D102 - as in Refusal
        return {"WWW-Authenticate": "Bearer"}


class InvalidToken(Refusal):
    """A token that proves nothing, or a user that does not exist."""

    status = 401

    def headers(self) -> dict[str, str]:  # noqa: D102 - as in Refusal
        return {"WWW-Authenticate": f'Bearer error="invalid_token", error_description="{self}"'}


class PageRefused(Refusal):
    """A page of another origin asks to send what it may not send (Fetch, section 4.8)."""

    status = 403


class NoOrganization(Refusal):
    """The user belongs to no organization."""

    status = 403


class BodyStalled(Refusal):
    """The body did not arrive within its deadline."""

    status = 408

    def headers(self) -> dict[str, str]:  # noqa: D102 - as in Refusal
        return {"Connection": "close"}


class HungUp(Refusal):
    """The client was gone before its request was done; nobody reads the answer, but the log."""

    status = 400


class BodyTooLarge(Refusal):
    """The body is longer than any allowed number of ids can be."""

    status = 413


class EncodedBody(Refusal):
    """The body is compressed; it is never inflated."""

    status = 415


class WrongHost(Refusal):
    """The Host header does not name this machine (RFC 9110, section 15.5.20)."""

    status = 421


class Unavailable(Refusal):
    """The database did not answer within the deadline, or too much is waiting for it."""

    status = 503

    def headers(self) -> dict[str, str]:  # noqa: D102 - as in Refusal
        return {"Retry-After": "1"}
