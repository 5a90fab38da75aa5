"""parse_ids: which ids a body asks for, exactly, whatever the body is."""

import asyncio
import contextlib
import json
import re
import tracemalloc
from collections.abc import Callable, Coroutine
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.config import Limits
from service.endpoints.list import parse_part
from service.endpoints.mark import parse_ids
from service.errors import InvalidBody, Unavailable
from service.turns import Rotation
from service.web.body import BYTES_PER_ID, MAX_INTEGER, SLICE, max_body_size, number

MANY = 1000
unhurried = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


async def pause() -> None:
    """Let the loop have its turn."""
    await asyncio.sleep(0)


def outcome(body: bytes, max_ids: int = MANY) -> list[int] | str:
    """The ids of a body, or why it has none."""
    parsing = parse_ids(body, max_ids, pause)
    try:
        while True:
            parsing.send(None)  # where the loop would have its turn
    except StopIteration as done:
        ids: list[int] = done.value
        return ids
    except InvalidBody as refusal:
        return str(refusal)


INTEGERS = {
    "1": 1,
    "5.0": 5,
    "5.000e0": 5,
    "1e3": 1000,
    "1E+3": 1000,
    "0.1e1": 1,
    "10e-1": 1,
    "9007199254740993": 2**53 + 1,
    "9007199254740993.0": 2**53 + 1,
    "900719925474099.3e1": 2**53 + 1,
    "9223372036854775807": MAX_INTEGER,
    "9223372036854775807.0": MAX_INTEGER,
    "9223372036854775807." + "0" * 5000: MAX_INTEGER,
    "1" + "0" * 5000 + "e-5000": 1,
    "0." + "0" * 5000 + "1e5001": 1,
}
OTHERS = [
    "0",
    "-0",
    "-0.0",
    "0e99999999999999999999",
    "-5",
    "1.5",
    "4.99999999999999999999",
    "9223372036854775806.999999999999",
    "9223372036854775807.5",
    "9223372036854775808",
    "18446744073709551621",
    "1e19",
    "1e999999999",
    "1e99999999999999999999",
    "1e-99999999999999999999",
    "9" * 5000,
    "true",
    "false",
    "null",
    '"5"',
    '""',
    '"\\u0035"',
    "{}",
    '{"id": 5}',
    "[]",
    "[5]",
    "[[[5]]]",
]


@pytest.mark.parametrize(("text", "value"), INTEGERS.items())
def test_a_number_without_a_fraction_is_that_integer_exactly(text: str, value: int) -> None:
    """However a number is written, what it is worth is what counts, to the last digit."""
    assert outcome(b'{"id": %s}' % text.encode()) == [value]
    assert outcome(b'{"ids": [%s]}' % text.encode()) == [value]
    assert outcome(b'{"ids": ["", %s, 7]}' % text.encode()) == [value, 7]


@pytest.mark.parametrize("text", OTHERS)
def test_anything_else_is_no_id(text: str) -> None:
    """It is skipped beside a valid id, refused without one, and never bent into one."""
    value = text.encode()
    for alone in (b'{"id": %s}' % value, b'{"ids": [%s, %s]}' % (value, value)):
        assert "none of them is" in outcome(alone) or text == "[]"
        assert not isinstance(outcome(alone), list)
    for beside in (b'{"id": %s, "ids": [7]}', b'{"ids": [%s, 7]}', b'{"x": %s, "id": 7}'):
        assert outcome(beside % value) == [7]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"id": 3, "ids": [1, 2]}', [3, 1, 2]),
        (b'{"ids": [1, 2], "id": 3}', [3, 1, 2]),
        (b'{"id": 1, "ids": [1, 1.0, 2, 10e-1]}', [1, 2]),
        (b'{"id": 1, "ids": "2"}', [1]),
        (b'{"id": 1, "ids": {"0": 2}}', [1]),
        (b'{"id": [1], "ids": [2]}', [2]),
        (b'{"id": 1, "id": 2}', [2]),
        (b'{"ids": [1], "ids": [2]}', [2]),
        (b'{"\\u0069d": 1}', [1]),
        (b'{"\\ud83d\\ude00": "\\ud83d\\ude00", "id": 1}', [1]),
        (b'{"ID": 1, "Ids": [2], "id ": 3, "id": 4}', [4]),
        (b' \t\r\n{ "ids" :\n[ 1 ,\t2 ] } \n', [1, 2]),
    ],
)
def test_id_and_ids_are_united(body: bytes, ids: list[int]) -> None:
    """The ids are those of both keys, each once; of a key that comes twice the last one counts."""
    assert outcome(body) == ids


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is empty"),
        (b" ", "the body is not valid JSON"),
        (b"{}", "the body has neither"),
        (b'{"idx": 1}', "the body has neither"),
        (b"[1]", "the body is not a JSON object"),
        (b"1", "the body is not a JSON object"),
        (b'"id"', "the body is not a JSON object"),
        (b"null", "the body is not a JSON object"),
        (b'{"ids": []}', "ids is empty"),
        (b'{"ids": [ \n]}', "ids is empty"),
        (b'{"ids": [0]}', "none of them is an integer"),
        (b'{"ids": null}', "none of them is an integer"),
        (b'{"ids": 5}', "none of them is an integer"),
        (b'{"id": [5]}', "none of them is an integer"),
    ],
)
def test_a_refusal_says_why(body: bytes, why: str) -> None:
    """A body without a valid id is refused with the reason."""
    assert why in outcome(body)
    assert not isinstance(outcome(body), list)


@pytest.mark.parametrize(
    "body",
    [
        b"id=5",
        b'{"id": 5',
        b'{"id": 5,}',
        b'{"ids": [5,]}',
        b'{"id": 5} x',
        b'{"id": 5}{"id": 6}',
        b'{"id": 5}\0',
        b"{'id': 5}",
        b"{id: 5}",
        b'{"id": 5 /* five */}',
        b'{"id":\v5}',
        *(
            form % number
            for form in (b'{"id": %s}', b'{"ids": [5, %s]}', b'{"x": %s, "id": 5}')
            for number in (
                b"NaN",
                b"Infinity",
                b"-Infinity",
                b"05",
                b"5.",
                b".5",
                b"+5",
                b"5e",
                b"0x5",
            )
        ),
        b'{"id": 5, "x": "\n"}',
        b'{"id": 5, "x": "\\q"}',
        b'{"id": 5, "x": tru}',
        b'{"id": 5, "x": {"a"}}',
        b'{"id": 5, "x": [1}}',
        b'\xef\xbb\xbf{"id": 5}',
        '{"id": 5}'.encode("utf-16-be"),
        '{"id": 5}'.encode("utf-32-le"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Not even a valid id before or after the flaw is taken (RFC 8259; no byte order mark)."""
    assert outcome(body) == "the body is not valid JSON"


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": 5}\xff',
        b'\x80{"id": 5}',
        b'{"id": 5, "x": "\xff"}',
        b'{"id": 5, "\xc3": 1}',
        b'{"id": 5, "x": "\xed\xa0\x80"}',  # a surrogate, encoded
        b'{"id": 5, "x": "\xc0\xaf"}',  # overlong
        b'{"ids": [5, "\xf5\x80\x80\x80"]}',
        '{"id": 5}'.encode("utf-16"),
    ],
)
def test_what_is_not_utf8_is_refused(body: bytes) -> None:
    """Wherever the flaw is, also in what would be ignored."""
    assert outcome(body) == "the body is not valid UTF-8"


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\ud800": 1, "id": 5}',
        b'{"x": "\\ud800", "id": 5}',
        b'{"x": ["\\udc00\\ud800"], "id": 5}',
        b'{"id": "\\ud800", "ids": [5]}',
        b'{"ids": ["\\ud800", 5]}',
    ],
)
def test_an_escaped_lone_surrogate_is_ignored_like_any_text(body: bytes) -> None:
    """It is JSON (RFC 8259, section 8.2), and what JSON.stringify makes of a cut emoji."""
    assert outcome(body) == [5]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"x":' * 60_000,
        b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"ids":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id":5,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id":5,"x":' + b'{"":' * 60_000 + b"0" + b"}" * 60_000 + b"}",
    ],
)
def test_deep_nesting_is_refused(body: bytes) -> None:
    """However deep the nesting, it ends in a refusal."""
    assert isinstance(outcome(body), str)


@pytest.mark.parametrize(
    ("body", "accepted"),
    [
        ('{"ids": [1, 2, 3]}', True),
        ('{"id": 3, "ids": [1, 2]}', True),
        ('{"id": 3, "ids": [1, 2, 3, 3.0, 2]}', True),
        ('{"ids": [1, 2, 3, 0, -1, true, "4", null]}', True),
        ('{"ids": [1, 2, 3, 4]}', False),
        ('{"id": 4, "ids": [1, 2, 3]}', False),
    ],
)
def test_the_limit_counts_distinct_valid_ids(body: str, *, accepted: bool) -> None:
    """A refusal names the limit; duplicates and what is no id do not count."""
    result = outcome(body.encode(), max_ids=3)
    assert (
        isinstance(result, list)
        if accepted
        else result == ("too many ids: at most 3 in one request")
    )


def test_the_longest_body_holds_as_many_ids_as_are_allowed() -> None:
    """The longest ids, pretty-printed, fit into the body that the limit allows."""
    body = json.dumps({"ids": [MAX_INTEGER - n for n in range(MANY)]}, indent=4)
    assert len(body) <= max_body_size(Limits(max_ids=MANY)) == 1024 + MANY * BYTES_PER_ID


LONGEST = max_body_size(Limits())
HOSTILE = [
    b"1",
    b"0",
    b"5.0",
    b"1e9",
    b"0.1",
    b"9007199254740993.0",
    b"1e400",
    b"9" * 5000,
    b"null",
    b'""',
    b'"\\n"',
    b'"\\ud800"',
    b"[]",
    b"{}",
    b"[" * 50 + b"]" * 50,
    b'{"a":[1,2.5]}',
]


def flood(item: bytes, key: bytes) -> bytes:
    """The longest body allowed, of one thing."""
    start, end = b'{"%s":["",' % key, b"]}"
    many = (LONGEST - len(start) - len(end)) // (len(item) + 1)
    return start + b",".join([item] * many) + end


@pytest.mark.parametrize("item", HOSTILE, ids=lambda item: item[:10].decode())
def test_the_loop_has_its_turn_while_a_long_list_is_read(
    monkeypatch: pytest.MonkeyPatch, item: bytes
) -> None:
    """Of what no typed decoder takes, so many elements at most are looked at in one go."""
    looked_at = 0

    def counted(text: bytes) -> int | Decimal:
        nonlocal looked_at
        looked_at += 1
        return number(text)

    monkeypatch.setattr("service.web.body.number", counted)
    parsing = parse_ids(flood(item, b"ids"), 10_000, pause)
    turns = 0
    with contextlib.suppress(StopIteration, InvalidBody):
        while True:
            parsing.send(None)
            turns += 1
            assert looked_at <= SLICE
            looked_at = 0
    tokens = len(re.findall(rb'"[^"]*"|[][{}]|[-\d.e]+', flood(item, b"ids")))
    assert turns >= min(tokens, 10_000) // SLICE or item == b"null"


@pytest.mark.parametrize("item", HOSTILE, ids=lambda item: item[:10].decode())
@pytest.mark.parametrize("parse", [partial(parse_ids, max_ids=10_000, pause=pause), parse_part])
def test_what_nobody_asked_for_makes_no_objects(
    parse: Callable[[bytes], Coroutine[Any, Any, object]], item: bytes
) -> None:
    """A member that is ignored is checked and skipped: a fraction of the work, and no memory."""
    body = flood(item, b"x")
    asyncio.run(asyncio.wait_for(quietly(parse(body)), 10))
    tracemalloc.start()
    try:
        asyncio.run(quietly(parse(body)))
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()


async def quietly(parsing: Coroutine[Any, Any, object]) -> None:
    """Parse, whatever comes of it."""
    with contextlib.suppress(InvalidBody):
        await parsing


async def test_slow_bodies_of_one_caller_hold_up_nobody() -> None:
    """However many they are; and a short one waits for none, though it is as odd."""
    rotation, late = Rotation(), asyncio.get_running_loop().time() + 60
    mallory, alice = (partial(rotation.turn, caller, late) for caller in ("mallory", "alice"))
    body = flood(b"5.0", b"ids")
    slow = [asyncio.create_task(parse_ids(body, 10_000, mallory)) for _ in range(5)]
    await asyncio.sleep(0)
    assert await parse_ids(b'{"ids":[%s]}' % (b"6.0," * 2000 + b"1"), 10_000, alice) == [6, 1]
    odd = parse_ids(b'{"ids": [1, "x"], "id": null}', 10_000, alice)
    with pytest.raises(StopIteration):
        odd.send(None)
    assert not any(task.done() for task in slow)
    assert await asyncio.gather(*slow) == [[5]] * 5


def test_a_long_body_waits_for_its_turn() -> None:
    """However honest it is: to decode ten thousand ids at once holds the loop as well."""
    ids = list(range(10**6, 10**6 + 2000))
    parsing = parse_ids(json.dumps({"ids": ids}).encode(), 10_000, pause)
    assert parsing.send(None) is None
    with pytest.raises(StopIteration) as end:
        parsing.send(None)
    assert end.value.value == ids


async def test_a_slow_body_ends_at_its_deadline() -> None:
    """Told as what it is: too much is waiting."""
    past = asyncio.get_running_loop().time() - 1
    with pytest.raises(Unavailable):
        await parse_ids(flood(b"5.0", b"ids"), 10_000, partial(Rotation().turn, "alice", past))


@pytest.mark.parametrize("digits", [1000, 4000])
def test_no_int_of_a_thousand_digits_is_made(monkeypatch: pytest.MonkeyPatch, digits: int) -> None:
    """It would take time by the square of that: neither decoder makes one."""
    monkeypatch.setattr("service.endpoints.mark._decode_plain", None)
    assert "none of them" in str(outcome(flood(b"1" * digits, b"ids")))
    assert type(number(b"1" * digits)) is Decimal


# JSON as text, so that a number can be written in every way there is.
numbers = st.one_of(
    st.integers(-3, 12).map(str),
    st.integers(MAX_INTEGER - 3, MAX_INTEGER + 3).map(str),
    st.integers(2**53 - 3, 2**53 + 3).map(lambda n: f"{n}.0"),
    st.from_regex(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,6})?([eE][+-]?[0-9]{1,2})?", fullmatch=True),
)
quoted = partial(json.dumps, ensure_ascii=False)
strings = st.text(st.characters(codec="utf-8"), max_size=4)
scalars = numbers | strings.map(quoted) | st.sampled_from(["true", "false", "null"])
spaces = st.sampled_from(["", "", "", " ", "\n\t"])


def array(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays of `values`."""
    return st.builds(
        lambda items, space: f"[{space}{f'{space},{space}'.join(items)}{space}]",
        st.lists(values, max_size=6),
        spaces,
    )


def objects(values: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects of `values`, perhaps with the same key twice."""
    members = st.lists(st.tuples(keys.map(quoted), values), max_size=4)
    return st.builds(
        lambda items, space: f"{{{space}{','.join(f'{k}{space}:{v}' for k, v in items)}{space}}}",
        members,
        spaces,
    )


values = st.recursive(
    scalars, lambda inner: array(inner) | objects(inner, strings), max_leaves=8
) | array(numbers)
bodies = objects(values, st.sampled_from(["id", "ids"]) | strings)


def oracle(text: str) -> list[int] | None:
    """The same answer, from Python's own parser and exact fractions; None: a refusal."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    def exact(number: str) -> Fraction | None:
        # No text here is long enough to make an id with such an exponent; a Fraction would be.
        exponent = number.lower().partition("e")[2]
        return None if len(exponent) > 5 else Fraction(number)

    try:
        body: Any = json.loads(text, parse_int=exact, parse_float=exact, parse_constant=refuse)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    wanted = [body.get("id")]
    if isinstance(body.get("ids"), list):
        wanted += body["ids"]
    found = {
        int(value)
        for value in wanted
        if isinstance(value, Fraction) and value.denominator == 1 and 1 <= value <= MAX_INTEGER
    }
    return sorted(found) or None


def agree(text: str) -> None:
    """Compare with the oracle."""
    result = outcome(text.encode())
    assert (sorted(result) if isinstance(result, list) else None) == oracle(text)


@unhurried
@given(bodies)
def test_agrees_with_another_parser(text: str) -> None:
    """For any JSON object, the ids are those that an independent parser finds."""
    agree(text)


@unhurried
@given(bodies, st.data())
def test_agrees_with_another_parser_on_what_is_not_json(text: str, data: st.DataObject) -> None:
    """For JSON with one character lost, changed or added, too."""
    at = data.draw(st.integers(0, len(text)))
    lost = data.draw(st.integers(0, 1))
    added = data.draw(st.sampled_from(["", *'0123456789.eE+-"\\{}[]:, \n\0\x7fatru']))
    agree(text[:at] + added + text[at + lost :])


@unhurried
@example(b"\xff")
@given(st.binary(max_size=40))
def test_any_bytes_give_ids_or_a_refusal(body: bytes) -> None:
    """Nothing else than a refusal is ever raised."""
    assert outcome(body)
