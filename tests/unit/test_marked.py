"""The moment of a mark is never before it, whatever the second or the clock is."""

from types import SimpleNamespace

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admin.board import Board
from service.web import marked as marked_module
from service.web.marked import HEADER, Marked
from service.web.request_info import _INFO, RequestInfo


def noted(marked: Marked, user_id: str, sent: str = "") -> float:
    """The moment that a request of this caller gets."""
    request = make_mocked_request("POST", "/systemevent", {str(HEADER): sent} if sent else {})
    request[_INFO] = RequestInfo("r-1", 0.0, user_id)
    return marked.moment(request)


@settings(deadline=None)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=20), st.floats(-0.99, 0))
def test_a_moment_is_a_second_after_the_mark_at_least(pauses: list[float], step: float) -> None:
    """Wherever in the second; also where this machine's own clock is set back in between."""
    now, wall = 1_764_190_000.3, 5000.7  # the primary's clock, and ours
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marked_module, "time", SimpleNamespace(time=lambda: wall))
        marked = Marked(lambda: now, memoryview(bytearray(64)).cast("d"))
        for number, pause in enumerate(pauses):
            now, wall = now + pause, wall + pause + (step if number == len(pauses) // 2 else 0)
            marked.note("ada")
            assert now <= noted(marked, "ada") <= now + 3
            assert marked.line == f"X-Marked-At: {noted(marked, 'ada'):.0f}\r\n"


def test_workers_and_callers() -> None:
    """Workers see each other's notes; a caller who has not marked waits for nobody."""
    board = Board(2)
    one, other = (Marked(lambda: 7.0, board.marked) for _ in range(2))
    one.note("ada")
    assert noted(other, "ada") == 9
    assert noted(other, "grace") == 0


@pytest.mark.parametrize(
    ("sent", "moment"),
    [
        ("8", 9),
        ("10", 10),
        ("999999999999999", 999999999999999),
        ("1" * 16, 9),
        ("-1", 9),
        ("x", 9),
    ],
)
def test_what_is_sent(sent: str, moment: float) -> None:
    """The later one counts; what is no moment does not."""
    marked = Marked(lambda: 7.0, Board(1).marked)
    marked.note("ada")
    assert noted(marked, "ada", sent) == moment
