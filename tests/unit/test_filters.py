"""What the body of a list, a count or a mark-all may say, and why others are refused."""

import json
from datetime import UTC, datetime

import pytest

from service.endpoints.filters import ALL, Filters, parse_filters
from service.endpoints.list import Part, parse_part
from service.endpoints.mark_all import parse_which
from service.errors import InvalidBody

NO_NUMBERS: list[object] = [-1, 0.5, 2**63, 1e300, "1", True, False, [], {}]
BAD: dict[tuple[str, ...], list[object]] = {
    ("from_timestamp", "to_timestamp"): [
        "", "now", "yesterday", "infinity", "1577836800", "2020-01-01", "12:00:00",
        "2020-13-01T00:00:00Z", "2020-02-30T00:00:00Z", "2020-01-01T25:00:00Z",
        "2020-01-01T00:00:00+99:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
        "2020-01-01T00:00:00Z\0", "2020-01-01T00:00:00Z; drop table users",
        "2020-01-01T00:00:00.Z", "2020-01-01T00:00:00 Z",
        1577836800, 1577836800000.0, True, {}, ["2020-01-01T00:00:00Z"],
    ],
    ("contextId", "userId", "workspaceId"): [1, 1.5, True, [], {}, ["w1"], "\0", "w1\0"],
    ("context",): [*NO_NUMBERS[1:], 2**15, -(2**15) - 1, "workspace"],
    ("event",): [*NO_NUMBERS[1:], 2**15, -(2**15) - 1, "created"],
    ("skip",): NO_NUMBERS,
    ("take",): [*NO_NUMBERS, 0, 101],
    ("showUnread",): [0, 1, 1.0, "true", "", [], {}],
}  # fmt: skip
BAD_VALUES = [(name, value) for names, values in BAD.items() for name in names for value in values]


async def why(body: bytes) -> str:
    """Why a list refuses a body; a count and a mark-all refuse what they share with it as well."""
    with pytest.raises(InvalidBody) as refusal:
        await parse_part(body)
    if not str(refusal.value).startswith(("skip", "take", "showUnread", "cursor")):
        for parse in (parse_filters, parse_which):
            with pytest.raises(InvalidBody) as other:
                await parse(body)
            assert str(other.value) == str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=map(ascii, BAD_VALUES))
async def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    assert (await why(json.dumps({name: value}).encode())).startswith(f"{name}: ")


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 400])
@pytest.mark.parametrize("name", ["skip", "take", "context", "event"])
async def test_a_number_beyond_all_bounds_is_refused_by_name(name: str, number: str) -> None:
    """It is JSON, and not in range."""
    assert (await why(f'{{"{name}": {number}}}'.encode())).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2020-01-02T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00Z", "2020-01-01T00:30:00+01:00"),
    ],
)
async def test_a_window_that_ends_before_it_begins_is_refused(since: str, until: str) -> None:
    """Also where only the offsets show it."""
    body = {"from_timestamp": since, "to_timestamp": until}
    assert (await why(json.dumps(body).encode())).startswith("from_timestamp: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body is not a JSON object"),
        (b"null", "the body is not a JSON object"),
        (b'"take"', "the body is not a JSON object"),
        (b"take=5", "the body is not valid JSON"),
        (b'{"take": 5', "the body is not valid JSON"),
        (b'{"take": NaN}', "the body is not valid JSON"),
        (b'{"userId": "\\ud800"}', "userId: holds a NUL or a lone surrogate"),
        (b'{"x":' * 60_000, "the body is not valid JSON"),
        (b'{"userId": "\xff"}', "the body is not valid UTF-8"),
        (b'{"x": "\xed\xa0\x80"}', "the body is not valid UTF-8"),
    ],
    ids=lambda value: ascii(value[:20]),
)
async def test_a_body_that_is_no_object_is_refused(body: bytes, message: str) -> None:
    assert await why(body) == message


@pytest.mark.parametrize(
    "member", ['"x": 1e400', '"x": ' + "9" * 5000, '"x": "\\ud800"', '"": null', '"x": [[[{}]]]']
)
async def test_unknown_keys_are_ignored(member: str) -> None:
    """Whatever their values are."""
    body = f'{{{member}, "context": 1}}'.encode()
    wanted = Filters(context=1)
    assert (await parse_part(body)).filters == wanted
    assert await parse_filters(body) == wanted
    assert (await parse_which(body)).filters == wanted


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b'{"from_timestamp": null, "take": null}'])
async def test_what_is_missing_or_null_has_its_default(body: bytes) -> None:
    assert await parse_part(body) == Part()
    assert await parse_filters(body) == ALL


@pytest.mark.parametrize(
    "text",
    ["2020-01-01T01:30:00+01:30", "2020-01-01T00:00:00Z", "2020-01-01t00:00:00z", "20200101T00"],
)
async def test_times_are_in_utc(text: str) -> None:
    found = await parse_filters(json.dumps({"to_timestamp": text}).encode())
    assert found.until == datetime(2020, 1, 1, tzinfo=UTC)
