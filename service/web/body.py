"""Bodies of requests: read within bounds, and JSON objects whose numbers are exact.

What a body costs is bounded: see "No body holds the loop" in ARCHITECTURE.md.
"""

import asyncio
import decimal
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal

import msgspec
from aiohttp import hdrs, web

from service.config import Limits
from service.errors import BodyStalled, BodyTooLarge, EncodedBody, HungUp, InvalidBody
from service.web.request_info import info

# An id takes at most 19 digits; the rest is the comma and the white space of a pretty printer.
BYTES_PER_ID = 32
BYTES_BESIDE = 1024
MAX_INTEGER = 2**63 - 1  # PostgreSQL's bigint
SLICE = 250  # tokens of an array that are looked at before the loop has its turn
LONE_SURROGATE = "\ud800"  # what stands for any text that has one

_ABSENT = msgspec.Raw()
_LITERALS: dict[bytes, bool | None] = {b"true": True, b"false": False, b"null": None}
LONG_NUMBER = 500  # digits
_SURE_DIGITS = 100  # int() takes more, but not all
_QUOTE = ord('"')
# In valid JSON without escapes: a string, a bracket, or a number, and what is before it.
_TOKEN = re.compile(rb'[^-0-9"[\]{}]*+("[^"]*+"|[\[{\]}]|[-0-9][-+.0-9eE]*+)')
_decode_text = msgspec.json.Decoder(str).decode


def max_body_size(limits: Limits) -> int:
    """The longest body, in bytes, that limits.max_ids can need."""
    return limits.max_ids * BYTES_PER_ID + BYTES_BESIDE


async def read_body(request: web.Request, limits: Limits) -> bytes:
    """Return the body.

    Raises:
        EncodedBody: it has a Content-Encoding; it is not read then.
        BodyTooLarge: it is longer than max_body_size().
        BodyStalled: it was not all there within limits.body_deadline.
        InvalidBody: its framing is broken.
        HungUp: the client is gone.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        raise EncodedBody("a body with a Content-Encoding is not accepted")
    most = max_body_size(limits)
    content = request.content
    if content.is_eof() and content.total_bytes <= most and content.exception() is None:
        return content.read_nowait()  # it came with the headers
    if (request.content_length or 0) > most:
        raise _too_large(limits)
    try:
        # From here, since a request may have waited for its turn before.
        until = asyncio.get_running_loop().time() + limits.body_deadline
        async with asyncio.timeout_at(min(until, info(request).arrived + limits.deadline)):
            return await request.read()
    except TimeoutError:
        raise BodyStalled("the body did not arrive in time") from None
    except OSError:  # of the connection: here nothing else is waited for
        raise HungUp("the client hung up before its body was all there") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limits) from None
    except (web.RequestPayloadError, ValueError):
        raise InvalidBody("the body is malformed", cause="malformed framing") from None


def _too_large(limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"the body is too large: at most {limits.max_ids} ids in one request")


class Members:
    """Some members of a JSON object; all others are checked and skipped, and make no objects."""

    def __init__(self, *names: str) -> None:
        """Read the members of these names."""
        fields = [(name, msgspec.Raw, _ABSENT) for name in names]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Members", fields))

    def read(self, body: bytes) -> dict[str, bytes]:
        """Return the JSON text of each member that is there; of the last one, where it comes twice.

        Raises:
            InvalidBody: no JSON object (RFC 8259), or not UTF-8; the text says which.
        """
        check_utf8(body)
        mark = _mark(body) if b"\\u" in body else b""
        if mark:
            body = body.replace(b"\\ud", mark).replace(b"\\uD", mark)
        try:
            made = msgspec.structs.asdict(self._decoder.decode(body))
        except msgspec.ValidationError:  # of the right form, or not read to its end
            _raw(body)
            raise InvalidBody("the body is not a JSON object", cause="not an object") from None
        except (ValueError, RecursionError):
            raise _not_json() from None
        found = {name: bytes(raw) for name, raw in made.items() if raw is not _ABSENT}
        if mark:
            found = {name: text.replace(mark, b"\\ud") for name, text in found.items()}
        return found


def has_long_number(body: bytes) -> bool:
    """Whether LONG_NUMBER digits stand together; twice as many are always found.

    To make an int of them takes time by the square of their number.
    """
    return any(body[at : at + LONG_NUMBER].isdigit() for at in range(0, len(body), LONG_NUMBER))


def _mark(body: bytes) -> bytes:
    r"""Find a stand-in for `\ud`, with which half of a pair begins.

    RFC 8259 lets one be without the other half, msgspec does not. A letter or digit that follows
    no `\u` of the body keeps what is an escape one, can be turned back, and makes no key into one
    that we look for. Empty where there is none.
    """
    if b"\\ud" not in body and b"\\uD" not in body:
        return b""
    marks = (b"\\u" + bytes([character]) for character in b"123456789abcefABCEF")
    return next((mark for mark in marks if mark not in body), b"")


def check_utf8(body: bytes) -> None:
    """Raise InvalidBody for what is not UTF-8; msgspec skips strings without a look at that."""
    try:
        body.isascii() or body.decode()
    except UnicodeDecodeError:
        raise InvalidBody("the body is not valid UTF-8", cause="not UTF-8") from None


def _raw(body: bytes) -> None:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (ValueError, RecursionError):
        raise _not_json() from None


def _not_json() -> InvalidBody:
    return InvalidBody("the body is not valid JSON", cause="not JSON")


def value(text: bytes) -> object:
    """Decode one member: str, bool, None, int or Decimal; an array or object stays JSON text."""
    if text[:1] == b'"':
        try:
            return _decode_text(text)
        except msgspec.DecodeError:
            return LONE_SURROGATE
    if text[:1] in b"[{":
        return text
    return _LITERALS[text] if text in _LITERALS else number(text)


def number(text: bytes) -> int | Decimal:
    """Return what a JSON number is worth, exactly."""
    if len(text) < _SURE_DIGITS and text.isdigit():
        return int(text)
    try:
        return Decimal(text.decode())
    except decimal.InvalidOperation:  # an exponent that Decimal cannot hold: out of every range
        return Decimal("Infinity")


async def integers(
    array: bytes, least: int, most: int, pause: Callable[[], Awaitable[None]]
) -> AsyncIterator[int]:
    """Yield the integers in least..most of a JSON array, in their order, and skip the rest.

    There is a `pause` after each SLICE of tokens, which are counted in arrays of arrays, too.
    """
    array = array.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")  # so that a quote ends a string
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(array), 1):
        if not count % SLICE:
            await pause()
        first = array[token.start(1)]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        elif depth == 1 and first != _QUOTE:
            found = integer(number(token[1]), least, most)
            if found is not None:
                yield found


def integer(value: object, least: int, most: int) -> int | None:
    """Return the integer in least..most that a decoded value is, exactly; None where it is none.

    An integer is a number without a fraction: `5`, `5.0`, `1e3` (JSON Schema, section 6.1.1).
    """
    if type(value) is int:  # not bool
        return value if least <= value <= most else None
    # Compared before it is made an int: 1e999999999 is a short text and a long number.
    if isinstance(value, Decimal) and least <= value <= most and value == value.to_integral_value():
        return int(value)
    return None
