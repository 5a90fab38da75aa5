"""Which ids a body asks for: {"id": n}, {"ids": [n, ...]}, or both."""

import decimal
from decimal import Decimal

import msgspec

from service.errors import InvalidBody

MAX_ID = 2**63 - 1  # PostgreSQL's bigint
# An id takes at most 19 digits; the rest is the comma and the white space of a pretty printer.
BYTES_PER_ID = 32
REQUIRED = "Provide either id or ids; at least one valid integer id is required"


class _Body(msgspec.Struct):
    # Raw: what we do not know is not decoded, so no number in it can be too big or too deep.
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    ids: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def max_body_size(max_ids: int) -> int:
    """The longest body, in bytes, that up to `max_ids` ids need."""
    return 1024 + max_ids * BYTES_PER_ID


def parse_ids(body: bytes, max_ids: int) -> list[int]:
    """Return the distinct valid ids of a request body, in its order.

    A valid id is a JSON number without a fraction (`5`, `5.0`, `1e3`; JSON Schema, section 6.1.1)
    from 1 to 2^63-1. Other elements of `ids` are skipped, as foreign ids are.

    Raises:
        InvalidBody: no valid id, more than `max_ids`, or no JSON object in UTF-8; the text says
            which.
    """
    wanted = _parse(body)
    ids: dict[int, None] = {}
    if wanted.id is not msgspec.UNSET and (one := _integer(wanted.id)):
        ids[one] = None
    if wanted.ids is not msgspec.UNSET:
        ids.update(dict.fromkeys(_integers(wanted.ids)))
    if not ids:
        raise InvalidBody(_why_none(wanted))
    if len(ids) > max_ids:
        raise InvalidBody(f"too many ids: at most {max_ids} in one request")
    return list(ids)


def _parse(body: bytes) -> _Body:
    if not body:
        raise InvalidBody(f"{REQUIRED}: the body is empty")
    try:
        body.decode()  # what is skipped must be UTF-8 too
        return msgspec.json.decode(body, type=_Body)
    except UnicodeDecodeError:
        raise InvalidBody("the body is not valid UTF-8") from None
    except msgspec.ValidationError:
        raise InvalidBody(f"{REQUIRED}: the body is not an object") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidBody("the body is not valid JSON") from None


def _integers(raw: msgspec.Raw) -> list[int]:
    """The valid ids in a JSON array; none in anything else."""
    try:
        # What clients send: decoded in one go.
        return [value for value in msgspec.json.decode(raw, type=list[int]) if 0 < value <= MAX_ID]
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        elements = msgspec.json.decode(raw, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return []
    return [value for element in elements if (value := _integer(element))]


def _integer(raw: msgspec.Raw) -> int:
    """The valid id that a JSON value is, exactly; 0 where it is none."""
    text = bytes(raw).decode()
    if text[0] not in "0123456789":
        return 0
    try:
        number = Decimal(text)
        # Compared before it is made an int: 1e999999999 is a short text and a long number.
        return int(number) if 1 <= number <= MAX_ID and number == number.to_integral_value() else 0
    except decimal.DecimalException:  # an exponent beyond what Decimal can hold
        return 0


def _why_none(wanted: _Body) -> str:
    if wanted.id is msgspec.UNSET and wanted.ids is msgspec.UNSET:
        return f"{REQUIRED}: the body has neither"
    if wanted.ids is not msgspec.UNSET and bytes(wanted.ids).translate(None, b" \t\r\n") == b"[]":
        return f"{REQUIRED}: ids is empty"
    return f"{REQUIRED}: none of them is an integer from 1 to {MAX_ID}"
