"""Cursors: what encode() makes is read back, and nothing else is."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.endpoints.cursor import decode, encode

times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
# 4714 BC to 294247 AD
places = st.integers(-210_866_803_200_000_000, 2**63 - 1).map(lambda n: timedelta(microseconds=n))
ids = st.integers(-(2**63), 2**63 - 1)


@given(st.none() | times, places, ids, st.integers(0, 10**15))
def test_a_cursor_is_read_as_it_was_made(
    since: datetime | None, at: timedelta, event_id: int, moment: int
) -> None:
    """To the microsecond, and whatever PostgreSQL can hold."""
    cursor = decode(encode(since, at, event_id, moment))
    assert (cursor.window_since, cursor.place, cursor.moment) == (since, (at, event_id), moment)


GOOD = encode(None, timedelta(days=20_000), 7)
FORGED = [
    b"[]", b"{}", b"null", b"[null,1]", b"[null,1,2,3,4]", b"[null, 1,2]", b"[null,1.5,2]",
    b"[null,1,2,0]", b"[null,1,2,-1]", b"[null,1,2,9999999999999999]",
    b'[null,"1",2]', b"[null,null,2]", b"[true,1,2]", b"[-1,1,2]", b"[253402300800000000,1,2]",
    b"[null,9223372036854775808,2]", b"[null,-210866803200000001,2]",
    b"[null,1,9223372036854775808]", b"[null,1e3,2]", b"\xff", b"[null,1,2", b"[" * 70,
]  # fmt: skip
TEXTS = [base64.urlsafe_b64encode(text).rstrip(b"=").decode() for text in FORGED]


@pytest.mark.parametrize(
    "text",
    [None, 5, b"x", "", "x", "=", "\ud800", GOOD + "=", GOOD + "A", " " + GOOD, "A" * 121, *TEXTS],
)
def test_what_is_no_cursor_is_refused(text: object) -> None:
    """And nothing but a ValueError comes of it."""
    with pytest.raises(ValueError):  # noqa: PT011 - its text is for nobody
        decode(text)


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    """One spelling only of each."""
    try:
        cursor = decode(text)
    except ValueError:
        return
    assert encode(cursor.window_since, *cursor.place, cursor.moment) == text
