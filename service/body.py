"""Bodies of requests: read within bounds, and JSON objects whose numbers are exact."""

import asyncio
import decimal
import json
from decimal import Decimal
from typing import Any, NoReturn

import msgspec
from aiohttp import hdrs, web

from service.config import Limits
from service.context import context
from service.errors import BodyStalled, BodyTooLarge, EncodedBody, InvalidBody

# An id takes at most 19 digits; the rest is the comma and the white space of a pretty printer.
BYTES_PER_ID = 32
BYTES_BESIDE = 1024


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
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        raise EncodedBody("a body with a Content-Encoding is not accepted")
    most = max_body_size(limits)
    if (request.content_length or 0) > most:
        raise _too_large(limits)
    try:
        if request.content.is_eof() and request.content.total_bytes <= most:
            return request.content.read_nowait()  # it came with the headers
        async with asyncio.timeout_at(context(request).arrived + limits.body_deadline):
            return await request.read()
    except TimeoutError:
        raise BodyStalled("the body did not arrive in time") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limits) from None
    except (web.RequestPayloadError, ValueError):
        raise InvalidBody("the body is malformed") from None


def _too_large(limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"the body is too large: at most {limits.max_ids} ids in one request")


def parse_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object (RFC 8259), its numbers as int or Decimal.

    Raises:
        InvalidBody: it is none, or not UTF-8; the text says which.
    """
    try:
        return _decoder.decode(body)
    except (ValueError, RecursionError):
        pass
    # What msgspec does not take can still be JSON: a lone surrogate, a number of 5,000 digits.
    try:
        value = json.loads(
            body.decode(), parse_int=_number, parse_float=_number, parse_constant=_refuse
        )
    except UnicodeDecodeError:
        raise InvalidBody("the body is not valid UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidBody("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidBody("the body is not a JSON object")
    return value


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


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except decimal.InvalidOperation:  # an exponent that Decimal cannot hold: out of every range
        return Decimal("Infinity")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and Infinity are not JSON


_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=_number)
