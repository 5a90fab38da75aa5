"""Which ids a body asks for: {"id": n}, {"ids": [n, ...]}, or both."""

from typing import Any

from service.body import integer, parse_object
from service.errors import InvalidBody

MAX_ID = 2**63 - 1  # PostgreSQL's bigint
REQUIRED = "Provide either id or ids; at least one valid integer id is required"


def parse_ids(body: bytes, max_ids: int) -> list[int]:
    """Return the distinct valid ids of a request body, in its order.

    A valid id is an integer from 1 to 2^63-1. Other elements of `ids` are skipped, as foreign ids
    are.

    Raises:
        InvalidBody: no valid id, more than `max_ids`, or no JSON object in UTF-8; the text says
            which.
    """
    if not body:
        raise InvalidBody(f"{REQUIRED}: the body is empty")
    values = parse_object(body)
    wanted = [values.get("id")]
    if isinstance(values.get("ids"), list):
        wanted += values["ids"]
    ids = list(dict.fromkeys(id_ for value in wanted if (id_ := integer(value, 1, MAX_ID))))
    if not ids:
        raise InvalidBody(_why_none(values))
    if len(ids) > max_ids:
        raise InvalidBody(f"too many ids: at most {max_ids} in one request")
    return ids


def _why_none(values: dict[str, Any]) -> str:
    if "id" not in values and "ids" not in values:
        return f"{REQUIRED}: the body has neither"
    if values.get("ids") == []:
        return f"{REQUIRED}: ids is empty"
    return f"{REQUIRED}: none of them is an integer from 1 to {MAX_ID}"
