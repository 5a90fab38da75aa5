"""The page, in a real browser: what a person sees, clicks and is told."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright, expect

from tests.cluster import free_port
from tests.conftest import HERE, psql

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LIST = "**/systemevent"
MARK = "**/systemevent/read"
USERS = "**/demo/users"
JSON = "application/json"


class Demo:
    """The service in demo mode, as `make run` starts it."""

    def __init__(self, folder: Path) -> None:
        """Keep the data in `folder`."""
        self._folder = folder
        self._environ = {
            "SYSTEMEVENT_SERVER_PORT": str(free_port()),
            "SYSTEMEVENT_ADMIN_PORT": str(free_port()),
            "SYSTEMEVENT_DATABASE_DATA_DIR": str(folder),
            "SYSTEMEVENT_LOGGING_LEVEL": "warning",
        }
        self.url = f"http://127.0.0.1:{self._environ['SYSTEMEVENT_SERVER_PORT']}"
        self._ready = f"http://127.0.0.1:{self._environ['SYSTEMEVENT_ADMIN_PORT']}/ready"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, on the same port and data as before, and wait until it is ready."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve"),
            env={**os.environ, **self._environ},
            cwd=HERE.parent,
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(60):
            while not await self._answers():
                assert self._process.returncode is None
                await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with aiohttp.request("GET", self._ready) as answer:
                return answer.status == HTTPStatus.OK
        return False

    async def stop(self) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.terminate()
        assert await self._process.wait() == 0

    async def reset(self) -> None:
        """Forget everything that was marked."""
        url = f"postgresql://postgres@/postgres?host={self._folder / 'postgres'}"
        await asyncio.to_thread(psql, url, "truncate system_event_read")


Open = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium; without one, these tests are skipped."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"the page is not tested: found none of {', '.join(CHROMIUM)}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    """The service, running."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    await demo.start()
    yield demo
    await demo.stop()


@pytest.fixture(autouse=True)
async def fresh(browser: Browser, demo: Demo) -> None:
    """Start each test from the same read state."""
    await demo.reset()


@pytest.fixture
async def context(browser: Browser, demo: Demo) -> AsyncIterator[BrowserContext]:
    """A browser profile of the test's own."""
    context = await browser.new_context(base_url=demo.url, locale="en")
    yield context
    await context.close()


@pytest.fixture
def open_as(context: BrowserContext) -> Open:
    """Open the page as somebody, in a new window, and wait until it shows events."""

    async def open_as(who: str = "ada") -> Page:
        page = await context.new_page()
        await page.goto(f"/#{who}")
        await expect(page.get_by_test_id("event")).to_have_count(20)
        return page

    return open_as


async def badge(page: Page) -> int:
    """The number at the bell."""
    return int(await page.get_by_test_id("badge").inner_text())


async def expect_badge(page: Page, number: int) -> None:
    """Wait until the bell shows a number."""
    await expect(page.get_by_test_id("badge")).to_have_text(str(number))


async def tokens(page: Page) -> dict[str, str]:
    """The demo users' tokens."""
    answer = await page.request.get("/demo/users")
    return {user["id"]: user["token"] for user in (await answer.json())["users"]}


async def ask(page: Page, who: str, **filters: Any) -> dict[str, Any]:  # noqa: ANN401
    """What the service lists for somebody, in all of the demo data's time."""
    answer = await page.request.post(
        "/systemevent",
        headers={"Authorization": f"Bearer {(await tokens(page))[who]}"},
        data={"from_timestamp": "2000-01-01T00:00:00Z", **filters},
    )
    found: dict[str, Any] = await answer.json()
    return found


async def expect_newest_of(page: Page, who: str) -> None:
    """Wait until the first event is the newest that somebody may see."""
    event = (await ask(page, who, take=1))["events"][0]
    name = "You" if event["userId"] == who else event["userName"]
    text = f"{name} {event['event']}"
    await expect(page.locator(".sentence").first).to_have_text(re.compile(f"^{re.escape(text)} "))


async def come_back(page: Page) -> None:
    """Give a window the focus, as a person does who returns to it."""
    await page.evaluate("dispatchEvent(new Event('focus'))")


async def refuse(page: Page, path: str, status: int) -> None:
    """Answer the page's calls with an error, in place of the service."""

    async def answer(route: Route) -> None:
        await route.fulfill(
            status=status,
            content_type=JSON,
            headers={"Retry-After": "7"},
            body='{"error": "because"}',
        )

    await page.route(path, answer)


async def hold(page: Page, path: str, calls: int) -> asyncio.Barrier:
    """Hold back the service's answers to the next calls.

    Wait on the barrier once until the service has answered all of them, and once to let them go.
    """
    barrier = asyncio.Barrier(calls + 1)
    number = itertools.count(1)

    async def answer(route: Route) -> None:
        if next(number) > calls:
            await route.continue_()
            return
        held = await route.fetch()
        await barrier.wait()
        await barrier.wait()
        await route.fulfill(response=held)

    await page.route(path, answer)
    return barrier


async def test_badge_counts_the_unread_events(open_as: Open) -> None:
    """The badge, the bell's name and the title have the number that the service counts."""
    page = await open_as()
    unread = (await ask(page, "ada", showUnread=True, take=1))["total"]
    assert unread > 20
    await expect_badge(page, unread)
    bell = page.get_by_test_id("bell")
    await expect(bell).to_have_accessible_name(f"Notifications, {unread} unread")
    await expect(page).to_have_title(f"({unread}) Notifications")


async def test_bell_opens_and_closes_the_list(open_as: Open) -> None:
    """The bell hides the list and shows it again, and says which it is."""
    page = await open_as()
    bell, event = page.get_by_test_id("bell"), page.get_by_test_id("event").first
    await bell.click()
    await expect(event).to_be_hidden()
    await expect(bell).to_have_attribute("aria-expanded", "false")
    await bell.click()
    await expect(event).to_be_visible()
    await expect(bell).to_have_attribute("aria-expanded", "true")


async def test_shows_the_newest_first_in_words(open_as: Open) -> None:
    """An event is a sentence, with a time that a machine can read and a person can see exactly."""
    page = await open_as()
    event = (await ask(page, "ada", take=1))["events"][0]
    shown = page.get_by_test_id("event").first
    await expect(shown).to_contain_text(event["event"])
    await expect(shown).to_contain_text(event["contextId"])
    await expect(shown.locator("time")).to_have_attribute("datetime", event["timestamp"])
    await expect(shown.locator("time")).to_contain_text("ago")
    assert await shown.locator("time").get_attribute("title")


async def test_click_marks_an_event_as_read(open_as: Open) -> None:
    """A click anywhere on an unread event marks it, on the server and on the badge."""
    page = await open_as()
    unread = await badge(page)
    event = page.get_by_test_id("event").nth(1)
    await event.click(position={"x": 5, "y": 5})
    await expect(event.get_by_test_id("mark-unread")).to_be_visible()
    await expect_badge(page, unread - 1)
    await page.reload()
    await expect(event.get_by_test_id("mark-unread")).to_be_visible()
    await expect_badge(page, unread - 1)


async def test_sends_one_id_as_id_and_several_as_ids(open_as: Open) -> None:
    """The bodies are those of the contract: {"id": n} for one, {"ids": [...]} for several."""
    page = await open_as()
    ids = [event["id"] for event in (await ask(page, "ada"))["events"]]
    async with page.expect_request(MARK) as one:
        await page.get_by_test_id("mark-one").first.click()
    async with page.expect_request(MARK) as several:
        await page.get_by_test_id("mark-all").click()
    assert (await one.value).post_data_json == {"id": ids[0]}
    assert (await several.value).post_data_json == {"ids": ids[1:]}


async def test_mark_all_marks_what_is_shown(open_as: Open) -> None:
    """All events on the page are marked, and no others."""
    page = await open_as()
    unread = await badge(page)
    await page.get_by_test_id("mark-all").click()
    await expect(page.get_by_test_id("mark-one")).to_have_count(0)
    await expect(page.get_by_test_id("mark-all")).to_be_disabled()
    await expect_badge(page, unread - 20)
    await page.reload()
    await expect_badge(page, unread - 20)


async def test_mark_as_unread_brings_an_event_back(open_as: Open) -> None:
    """An event that was read can be made unread again."""
    page = await open_as()
    unread = await badge(page)
    event = page.get_by_test_id("event").first
    await event.get_by_test_id("mark-one").click()
    await expect_badge(page, unread - 1)
    await event.get_by_test_id("mark-unread").click()
    await expect_badge(page, unread)
    await page.reload()
    await expect(event.get_by_test_id("mark-one")).to_be_visible()
    await expect_badge(page, unread)


async def test_the_last_click_wins(open_as: Open) -> None:
    """Marks of the same event reach the service in the order of the clicks."""
    page = await open_as()
    unread = await badge(page)
    button = page.get_by_test_id("event").first.get_by_role("button")
    await button.evaluate("button => { for (let i = 0; i < 5; i++) button.click() }")
    await expect(button).to_have_text("Mark as unread")
    async with page.expect_response(LIST):
        await come_back(page)
    await page.reload()
    await expect(button).to_have_text("Mark as unread")
    await expect_badge(page, unread - 1)


async def test_unread_filter_shows_only_unread_events(open_as: Open) -> None:
    """With the filter on, what is read goes when the list is fetched anew; off, it returns."""
    page = await open_as()
    first = page.get_by_test_id("event").first
    newest = await first.locator("time").get_attribute("datetime")
    assert newest
    await first.click()
    await expect(page.get_by_test_id("mark-unread")).to_have_count(1)
    await page.get_by_test_id("unread-filter").check()
    await expect(page.get_by_test_id("mark-unread")).to_have_count(0)
    await expect(page.get_by_test_id("mark-one")).to_have_count(20)
    await page.get_by_test_id("unread-filter").uncheck()
    await expect(first.locator("time")).to_have_attribute("datetime", newest)
    await expect(first.get_by_test_id("mark-unread")).to_be_visible()


async def test_unread_filter_says_when_nothing_is_left(open_as: Open) -> None:
    """Whoever has read everything is told so, and has no badge."""
    page = await open_as()
    events = [event["id"] for event in (await ask(page, "ada", take=100))["events"]]
    events += [event["id"] for event in (await ask(page, "ada", skip=100, take=100))["events"]]
    await page.request.post(
        "/systemevent/read",
        headers={"Authorization": f"Bearer {(await tokens(page))['ada']}"},
        data={"ids": events},
    )
    await page.get_by_test_id("unread-filter").check()
    await expect(page.get_by_test_id("empty")).to_have_text("You have read everything.")
    await expect(page.get_by_test_id("badge")).to_be_hidden()


async def test_show_more_adds_older_events(open_as: Open) -> None:
    """Twenty more, in order, without losing the first; a refresh keeps them."""
    page = await open_as()
    await page.get_by_test_id("more").click()
    await expect(page.get_by_test_id("event")).to_have_count(40)
    times = [event["timestamp"] for event in (await ask(page, "ada", take=40))["events"]]
    shown = await page.locator("time").evaluate_all("all => all.map(time => time.dateTime)")
    assert shown == times
    async with page.expect_response(LIST):
        await come_back(page)
    await expect(page.get_by_test_id("event")).to_have_count(40)


async def test_second_window_catches_up_on_focus(open_as: Open) -> None:
    """What was marked in one window is seen in another when the person comes back to it."""
    first, second = await open_as(), await open_as()
    unread = await badge(first)
    for _ in range(2):
        async with second.expect_response(MARK):
            await second.get_by_test_id("mark-one").first.click()
    await expect_badge(first, unread)
    await come_back(first)
    await expect_badge(first, unread - 2)
    await expect(first.get_by_test_id("event").first.get_by_test_id("mark-unread")).to_be_visible()


async def test_timer_refreshes_and_stops_in_a_hidden_tab(context: BrowserContext) -> None:
    """Once a minute while visible, never while hidden, and at once when visible again."""
    page = await context.new_page()
    await page.clock.install()
    await page.goto("/#ada")
    await expect(page.get_by_test_id("event")).to_have_count(20)
    async with page.expect_response(LIST):
        await page.clock.fast_forward(61_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", {configurable: true, get: () => true});
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    await page.clock.run_for(600_000)
    assert asked == []
    async with page.expect_response(LIST):
        await page.evaluate(
            """() => {
                delete document.hidden;
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        await page.clock.run_for(10)


async def test_expired_session_is_told_and_recovered(context: BrowserContext) -> None:
    """A token that is refused is explained; signing in again shows the events."""
    page = await context.new_page()

    async def spoil(route: Route) -> None:
        answer = await (await route.fetch()).json()
        users = [{**user, "token": f"{user['token']}x"} for user in answer["users"]]
        await route.fulfill(json={"users": users})

    await page.route(USERS, spoil)
    await page.goto("/#ada")
    await expect(page.get_by_test_id("message")).to_contain_text("Your session has ended")
    await page.unroute(USERS)
    await page.get_by_role("button", name="Sign in again").click()
    await expect(page.get_by_test_id("event")).to_have_count(20)
    await expect(page.get_by_test_id("message")).to_be_hidden()


async def test_session_that_expires_during_a_mark_loses_nothing(open_as: Open) -> None:
    """The mark is taken back, and made when the person has signed in again."""
    page = await open_as()
    unread = await badge(page)
    await refuse(page, MARK, 401)
    await page.get_by_test_id("mark-one").first.click()
    await expect(page.get_by_test_id("message")).to_contain_text("Your session has ended (because)")
    await expect_badge(page, unread)
    await page.unroute(MARK)
    await page.get_by_role("button", name="Sign in again").click()
    await expect(page.get_by_test_id("message")).to_be_hidden()
    await expect_badge(page, unread - 1)


async def test_service_down_and_back(open_as: Open, demo: Demo) -> None:
    """A mark that cannot be made is taken back and told; when the service is back, it is made."""
    page = await open_as()
    unread = await badge(page)
    event = page.get_by_test_id("event").first
    await demo.stop()
    try:
        await event.get_by_test_id("mark-one").click()
        await expect(page.get_by_test_id("message")).to_contain_text("cannot be reached")
        await expect(event.get_by_test_id("mark-one")).to_be_visible()
        await expect_badge(page, unread)
        await page.get_by_test_id("retry").click()
        await expect(page.get_by_test_id("retry")).to_have_text("Try again")
        await expect(page.get_by_test_id("message")).to_contain_text("cannot be reached")
    finally:
        await demo.start()
    await page.get_by_test_id("retry").click()
    await expect(page.get_by_test_id("message")).to_be_hidden()
    await expect(event.get_by_test_id("mark-unread")).to_be_visible()
    await expect_badge(page, unread - 1)


async def test_recovers_by_itself_on_focus(open_as: Open, demo: Demo) -> None:
    """A list that could not be fetched is told, and the message goes when one can be."""
    page = await open_as()
    await demo.stop()
    try:
        await come_back(page)
        await expect(page.get_by_test_id("message")).to_contain_text("cannot be reached")
        await expect(page.get_by_test_id("event")).to_have_count(20)
    finally:
        await demo.start()
    await come_back(page)
    await expect(page.get_by_test_id("message")).to_be_hidden()


async def test_busy_service_says_when_to_try_again(open_as: Open) -> None:
    """A 503 is told with the time that the service asks for."""
    page = await open_as()
    await refuse(page, LIST, 503)
    await come_back(page)
    await expect(page.get_by_test_id("message")).to_contain_text("Try again in 7 s")
    await page.unroute(LIST)
    await page.get_by_test_id("retry").click()
    await expect(page.get_by_test_id("message")).to_be_hidden()


async def test_another_organizations_user_sees_its_own_events(open_as: Open) -> None:
    """Switching to another organization shows its events alone; what Ada read, only Ada read."""
    page = await open_as()
    unread = (await ask(page, "grace", showUnread=True, take=1))["total"]
    async with page.expect_response(MARK):
        await page.get_by_test_id("mark-all").click()
    await page.get_by_test_id("user").select_option("grace")
    await expect_newest_of(page, "grace")
    await expect(page.get_by_test_id("event")).to_have_count(20)
    await expect_badge(page, unread)
    await expect(page).to_have_url("/#grace")


async def test_late_answer_does_not_show_to_the_next_person(open_as: Open) -> None:
    """An answer that arrives after the person has changed is dropped."""
    page = await open_as()
    lists = await hold(page, LIST, calls=2)  # the list and the count
    answered = itertools.count(1)
    await come_back(page)
    await lists.wait()
    await page.get_by_test_id("user").select_option("grace")
    await expect_newest_of(page, "grace")
    unread = await badge(page)
    async with page.expect_event("requestfinished", lambda _: next(answered) == 2):
        await lists.wait()
    await page.evaluate("fetch('/demo/users').then(answer => answer.text())")  # it has had its turn
    await expect_newest_of(page, "grace")
    await expect_badge(page, unread)


async def test_list_under_way_does_not_undo_a_mark(open_as: Open) -> None:
    """An answer that the service gave before a mark does not take the mark off the page."""
    page = await open_as()
    unread = await badge(page)
    lists, mark = await hold(page, LIST, calls=2), await hold(page, MARK, calls=1)
    answered = itertools.count(1)
    await come_back(page)
    await lists.wait()
    await page.get_by_test_id("mark-one").first.click()
    await mark.wait()
    async with page.expect_event("requestfinished", lambda _: next(answered) == 2):
        await lists.wait()
    async with page.expect_response(LIST):  # asked anew, now that the mark is made
        await expect_badge(page, unread - 1)
        await mark.wait()
    await expect_badge(page, unread - 1)
    await expect(page.get_by_test_id("mark-unread")).to_have_count(1)


async def test_user_without_organization_is_told_why_nothing_is_there(open_as: Open) -> None:
    """A 403 is an explanation, with neither events nor a badge of the person before."""
    page = await open_as()
    await page.get_by_test_id("user").select_option("mary")
    await expect(page.get_by_test_id("message")).to_contain_text("You belong to no organization")
    await expect(page.get_by_test_id("retry")).to_be_hidden()
    await expect(page.get_by_test_id("event")).to_have_count(0)
    await expect(page.get_by_test_id("badge")).to_be_hidden()
    await page.get_by_test_id("user").select_option("ada")
    await expect(page.get_by_test_id("message")).to_be_hidden()
    await expect(page.get_by_test_id("event")).to_have_count(20)


async def test_ids_above_two_to_the_53_stay_exact(context: BrowserContext) -> None:
    """An id that a JavaScript number cannot hold comes back as it went out."""
    page = await context.new_page()
    event = {
        "timestamp": "2026-01-01T00:00:00.000Z",
        "contextId": "logs",
        "context": "bucket",
        "event": "created",
        "orgId": "analytical",
        "userId": "grace",
        "userName": "Grace Hopper",
        "userEmail": "grace@flowmatic.example",
        "workspaceId": None,
        "jsonData": "not JSON",
        "showUnread": True,
        "id": 2**53 + 1,
    }

    async def answer(route: Route) -> None:
        page = {"events": [event], "total": 1, "skip": 0, "take": 20}
        await route.fulfill(content_type=JSON, body=json.dumps(page))

    await page.route(LIST, answer)
    await page.goto("/#ada")
    await expect(page.get_by_test_id("event")).to_contain_text("Grace Hopper created bucket “logs”")
    async with page.expect_request(MARK) as mark:
        await page.get_by_test_id("mark-one").click()
    assert (await mark.value).post_data == '{"id":9007199254740993}'
    await expect(page.get_by_test_id("mark-unread")).to_be_visible()


async def test_works_by_keyboard_alone(open_as: Open) -> None:
    """Everything is reached with Tab, and the focus stays where the person is."""
    page = await open_as()
    unread = await badge(page)
    focused = page.locator(":focus")

    async def tab_to(hook: str) -> None:
        await page.keyboard.press("Tab")
        await expect(focused).to_have_attribute("data-testid", hook)

    await tab_to("user")
    await tab_to("bell")
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("event").first).to_be_hidden()
    await page.keyboard.press("Enter")
    await tab_to("unread-filter")
    await tab_to("mark-all")
    await tab_to("mark-one")
    await page.keyboard.press("Enter")
    await expect(focused).to_have_attribute("data-testid", "mark-unread")
    await expect_badge(page, unread - 1)
    await page.keyboard.press("Space")
    await expect(focused).to_have_attribute("data-testid", "mark-one")
    await expect_badge(page, unread)

    # With the filter on, an event that goes hands the focus to the next.
    await page.get_by_test_id("unread-filter").check()
    await page.get_by_test_id("mark-one").first.focus()
    async with page.expect_response(MARK):
        await page.keyboard.press("Enter")
    await come_back(page)
    await expect(focused).to_have_attribute("data-testid", "mark-one")

    await page.get_by_test_id("more").focus()
    await page.keyboard.press("Enter")
    event = page.get_by_test_id("event").nth(20)
    await expect(event.get_by_test_id("mark-one")).to_be_focused()


async def test_fits_a_narrow_phone(open_as: Open) -> None:
    """At 320 pixels nothing is cut off and nothing scrolls sideways, message included."""
    page = await open_as()
    await page.set_viewport_size({"width": 320, "height": 640})
    await refuse(page, MARK, 500)
    await page.get_by_test_id("mark-one").first.click()
    await expect(page.get_by_test_id("retry")).to_be_in_viewport()
    assert await page.evaluate("document.documentElement.scrollWidth") == 320


async def test_violates_no_policy_and_logs_no_error(context: BrowserContext) -> None:
    """The Content-Security-Policy is strict, and the page lives with it in silence."""
    wrong: list[str] = []
    page = await context.new_page()
    page.on("console", lambda said: wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
    await page.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))"
    )
    answer = await page.goto("/#ada")
    assert answer
    policy = (await answer.all_headers())["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    await expect(page.get_by_test_id("event")).to_have_count(20)
    await page.get_by_test_id("mark-one").first.click()
    await page.get_by_test_id("mark-unread").first.click()
    await page.get_by_test_id("mark-all").click()
    await page.get_by_test_id("unread-filter").check()
    await expect(page.get_by_test_id("mark-one")).to_have_count(20)
    await page.get_by_test_id("more").click()
    await expect(page.get_by_test_id("event")).to_have_count(40)
    await page.get_by_test_id("user").select_option("grace")
    await expect(page.get_by_test_id("event")).to_have_count(20)
    assert wrong == []
