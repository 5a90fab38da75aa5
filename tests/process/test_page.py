"""The page and its client, in a real browser: what a person sees, clicks and is told."""

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright, expect

from tests.conftest import ROOT, psql
from tests.support.cluster import free_port

pytestmark = pytest.mark.late  # the browser's own limits
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LIST = "**/systemevent"
COUNT = "**/systemevent/count"
MARK = "**/systemevent/read"
USERS = "**/demo/users"
AXE = ROOT / "client/node_modules/axe-core/axe.min.js"
HAPPEN = """
    insert into system_event_log
      (organization_id, id, "timestamp", context, event, context_id, user_id)
    select 'analytical', max(id) + 1, now(), 1, 0, 'new', 'charles' from system_event_log
"""

Sql = Callable[[str], Awaitable[str]]
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
async def demo() -> AsyncIterator[tuple[str, Sql]]:
    """The service in demo mode, as `make run` starts it: its address, and its database."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        port = str(free_port())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve"),
            env={
                **os.environ,
                "SYSTEMEVENT_SERVER_PORT": port,
                "SYSTEMEVENT_ADMIN_PORT": str(free_port()),
                "SYSTEMEVENT_DATABASE_DATA_DIR": folder,
                "SYSTEMEVENT_LOGGING_LEVEL": "warning",
            },
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            await process.stdout.readuntil(b"Ctrl-C stops all of it.")
        database = f"postgresql://postgres@/postgres?host={Path(folder) / 'postgres'}"

        async def sql(command: str) -> str:
            return await asyncio.to_thread(psql, database, command)

        yield f"http://127.0.0.1:{port}", sql
        process.terminate()
        assert await process.wait() == 0


@pytest.fixture
async def sql(demo: tuple[str, Sql]) -> Sql:
    """The database, as it was at the start: ask it, or do in it what the platform does."""
    _, sql = demo
    await sql("truncate system_event_read; delete from system_event_log where id > 200")
    return sql


@pytest.fixture
async def context(
    browser: Browser, demo: tuple[str, Sql], sql: Sql
) -> AsyncIterator[BrowserContext]:
    """A browser profile of the test's own."""
    context = await browser.new_context(base_url=demo[0], locale="en")
    yield context
    await context.close()


@pytest.fixture
def open_as(context: BrowserContext) -> Open:
    """Open the page as somebody, in a new tab, and wait until it shows events."""

    async def open_as(who: str = "ada") -> Page:
        page = await context.new_page()
        await page.goto(f"/#{who}")
        await expect(page.get_by_test_id("event")).to_have_count(20)
        return page

    return open_as


async def badge(page: Page) -> int:
    """The number at the bell."""
    await expect(page.get_by_test_id("badge")).to_be_visible()
    return int(await page.get_by_test_id("badge").inner_text())


async def times(page: Page) -> list[str]:
    """When the events shown happened, in their order."""
    found: list[str] = await page.locator("time").evaluate_all("all => all.map(t => t.dateTime)")
    return found


async def expect_badge(page: Page, number: int) -> None:
    """Wait until the bell shows a number."""
    await expect(page.get_by_test_id("badge")).to_have_text(str(number))


async def ask(page: Page, who: str, **filters: Any) -> dict[str, Any]:
    """What the service lists for somebody, in all of the demo data's time."""
    users = (await (await page.request.get("/demo/users")).json())["users"]
    (token,) = (user["token"] for user in users if user["id"] == who)
    answer = await page.request.post(
        "/systemevent",
        headers={"Authorization": f"Bearer {token}"},
        data={"from_timestamp": "2000-01-01T00:00:00Z", **filters},
    )
    found: dict[str, Any] = await answer.json()
    return found


async def has_read(sql: Sql) -> set[int]:
    """What Ada has read, on the server."""
    ids = await sql("select event_id from system_event_read where user_id = 'ada'")
    return set(map(int, ids.split()))


async def expect_read(sql: Sql, ids: set[int]) -> None:
    """Wait until the server has it so."""
    async with asyncio.timeout(10):
        while await has_read(sql) != ids:
            await asyncio.sleep(0.05)


async def come_back(page: Page) -> None:
    """Give a window the focus, as a person does who returns to it."""
    await page.evaluate("dispatchEvent(new Event('focus'))")


async def refuse(page: Page | BrowserContext, path: str, status: int = 500) -> None:
    """Answer the page's calls with an error, in place of the service."""
    await page.route(path, lambda route: route.fulfill(status=status, json={"error": "because"}))


async def test_badge_counts_the_unread_events(open_as: Open) -> None:
    """The badge, the bell's name and the title have the number that the service counts."""
    page = await open_as()
    unread = (await ask(page, "ada", showUnread=True, take=1))["total"]
    assert unread > 20
    await expect_badge(page, unread)
    bell = page.get_by_test_id("bell")
    await expect(bell).to_have_accessible_name(f"Notifications, {unread} unread")
    await expect(page).to_have_title(f"({unread}) Notifications")


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


async def test_a_click_marks_as_read_and_the_button_as_unread(open_as: Open, sql: Sql) -> None:
    """A click anywhere on an unread event marks it, on the server and on the badge; and back."""
    page = await open_as()
    unread = await badge(page)
    event = page.get_by_test_id("event").nth(1)
    await event.click(position={"x": 5, "y": 5})
    await expect_badge(page, unread - 1)
    await page.reload()
    await expect_badge(page, unread - 1)
    assert await has_read(sql) == {199}
    await event.get_by_test_id("mark-unread").click()
    await expect_badge(page, unread)
    assert await has_read(sql) == set()


async def test_a_double_click_and_a_key_held_down_are_one_action(open_as: Open) -> None:
    """An event does not go back to unread under a hand that trembles."""
    page = await open_as()
    first, second = (page.get_by_test_id("event").nth(n).get_by_role("button") for n in (0, 1))
    await first.dblclick()
    await expect(first).to_have_text("Mark as unread")
    await second.focus()
    await page.keyboard.down("Enter")
    await page.keyboard.down("Enter")  # what a keyboard repeats
    await page.keyboard.up("Enter")
    await expect(second).to_have_text("Mark as unread")


async def test_mark_all_reaches_what_is_not_shown(open_as: Open, sql: Sql) -> None:
    """Everything is read, on all pages, but not what has arrived since the person looked."""
    page = await open_as()
    await sql(HAPPEN)
    await page.get_by_test_id("mark-all").click()
    await expect(page.get_by_test_id("mark-one")).to_have_count(0)
    await expect_badge(page, 1)
    assert await has_read(sql) == set(range(1, 201))
    await come_back(page)
    await expect(page.get_by_test_id("mark-one")).to_have_count(1)
    await page.get_by_test_id("mark-all").click()
    await expect(page.get_by_test_id("mark-all")).to_be_disabled()
    await page.get_by_test_id("unread-filter").check()
    await expect(page.get_by_test_id("empty")).to_have_text("You have read everything.")
    await expect(page.get_by_test_id("badge")).to_be_hidden()


async def test_a_marked_event_stays_until_the_filter_is_set_anew(open_as: Open, sql: Sql) -> None:
    """Under the filter, what is read keeps its place, also when the list is asked for again."""
    page = await open_as()
    unread_filter = page.get_by_test_id("unread-filter")
    await unread_filter.check()
    event = page.get_by_test_id("event").nth(1)
    name = await event.locator(".sentence").inner_text()
    async with page.expect_response(COUNT):
        await event.click()
    await sql(HAPPEN)
    await come_back(page)
    await expect(page.get_by_test_id("event")).to_have_count(21)
    await expect(page.get_by_test_id("event").nth(2).locator(".sentence")).to_have_text(name)
    await expect(page.get_by_test_id("mark-unread")).to_have_count(1)
    await unread_filter.uncheck()
    await expect(page.get_by_test_id("mark-unread")).to_have_count(1)
    await unread_filter.check()
    await expect(page.get_by_test_id("mark-unread")).to_have_count(0)
    await expect(page.get_by_test_id("event")).to_have_count(20)


async def test_show_more_adds_older_events(open_as: Open, sql: Sql) -> None:
    """Twenty more, whatever has arrived, with the focus on the first; a refresh keeps them."""
    page = await open_as()
    await sql(HAPPEN)
    await page.get_by_test_id("more").click()
    await expect(page.get_by_test_id("event")).to_have_count(40)
    await expect(page.get_by_test_id("event").nth(20).get_by_role("button")).to_be_focused()
    there_are = [event["timestamp"] for event in (await ask(page, "ada", take=41))["events"]]
    assert await times(page) == there_are[1:]
    await come_back(page)
    await expect(page.get_by_test_id("event")).to_have_count(41)
    assert await times(page) == there_are


async def test_tabs_see_each_others_marks(open_as: Open) -> None:
    """What is marked in one tab is marked in the other, which nobody has looked at."""
    first, second = await open_as(), await open_as()
    unread = await badge(first)
    await second.get_by_test_id("mark-one").first.click()
    await expect(first.get_by_test_id("event").first.get_by_test_id("mark-unread")).to_be_visible()
    await expect_badge(first, unread - 1)
    await second.get_by_test_id("mark-all").click()
    await expect(first.get_by_test_id("mark-one")).to_have_count(0)
    await expect(first.get_by_test_id("badge")).to_be_hidden()


async def test_leaving_loses_no_mark(open_as: Open, sql: Sql) -> None:
    """Three clicks on a slow line, and away: all three arrive."""
    page = await open_as()
    left = asyncio.Event()

    async def slow(route: Route) -> None:
        await left.wait()
        await route.continue_()

    await page.context.route(MARK, slow)
    async with page.expect_request(MARK):
        await page.get_by_test_id("mark-one").first.click()
    await page.evaluate(
        """() => {
            const [one, two] = document.querySelectorAll("[data-testid=mark-one]");
            one.click();
            two.click();
            location.href = "about:blank";
        }"""
    )
    await page.wait_for_url("about:blank")
    left.set()
    await expect_read(sql, {198, 199, 200})


async def test_read_unread_read_ends_at_read(open_as: Open, sql: Sql) -> None:
    """The last click wins, on both sides, though the first was refused after it."""
    page = await open_as()
    gate = asyncio.Event()
    calls = itertools.count()

    async def answer(route: Route) -> None:
        if next(calls):
            return await route.continue_()
        await gate.wait()
        return await route.fulfill(status=500, json={"error": "because"})

    await page.route(MARK, answer)
    button = page.get_by_test_id("event").first.get_by_role("button")
    async with page.expect_request(MARK):
        await button.click()
    for _ in range(2):
        await button.evaluate("button => button.click()")
    gate.set()
    await expect_read(sql, {200})
    await expect(button).to_have_text("Mark as unread")


async def test_failures_are_told_until_they_are_made_good(open_as: Open, sql: Sql) -> None:
    """A success elsewhere does not hide them, and "Try again" repeats all of them."""
    page = await open_as()
    message = page.get_by_test_id("message")
    buttons = [page.get_by_test_id("event").nth(n).get_by_role("button") for n in range(3)]
    await refuse(page, MARK)
    for button in buttons[:2]:
        async with page.expect_response(MARK):
            await button.click()
        await expect(button).to_have_text("Mark as read")
    await expect(message).to_contain_text("Something went wrong (because)")
    await page.unroute(MARK)
    await buttons[2].click()
    await expect_read(sql, {198})
    await come_back(page)
    await expect(message).to_be_visible()
    await page.get_by_test_id("retry").click()
    await expect_read(sql, {198, 199, 200})
    await expect(message).to_be_hidden()


async def test_a_count_that_fails_leaves_the_list(open_as: Open, context: BrowserContext) -> None:
    """The badge is not known then; the events are."""
    await refuse(context, COUNT)
    page = await open_as()
    await expect(page.get_by_test_id("message")).to_contain_text("Something went wrong (because)")
    await expect(page.get_by_test_id("badge")).to_be_hidden()
    await context.unroute(COUNT)
    await page.get_by_test_id("retry").click()
    await expect(page.get_by_test_id("message")).to_be_hidden()
    await expect(page.get_by_test_id("badge")).to_be_visible()


async def test_offline_keeps_the_marks(open_as: Open, sql: Sql) -> None:
    """A mark stays shown and is told; when the line is back, it is made by itself."""
    page = await open_as()
    unread = await badge(page)
    message = page.get_by_test_id("message")
    await page.context.set_offline(True)
    await page.get_by_test_id("mark-one").first.click()
    await expect(message).to_contain_text("cannot be reached. Your marks are kept")
    await expect(page.get_by_test_id("mark-unread")).to_have_count(1)
    await page.context.set_offline(False)
    await expect(message).to_be_hidden()
    await expect_badge(page, unread - 1)
    assert await has_read(sql) == {200}


@pytest.mark.parametrize("good_from_call", [1, 2])
async def test_an_expired_session_is_renewed_or_told(
    context: BrowserContext, good_from_call: int
) -> None:
    """A new token is asked for once; where that is refused too, the person signs in again."""
    page = await context.new_page()
    calls = itertools.count()

    async def spoil(route: Route) -> None:
        if next(calls) >= good_from_call:
            return await route.continue_()
        answer = await (await route.fetch()).json()
        users = [{**user, "token": f"{user['token']}x"} for user in answer["users"]]
        return await route.fulfill(json={"users": users})

    await page.route(USERS, spoil)
    await page.goto("/#ada")
    if good_from_call == 2:
        await expect(page.get_by_test_id("message")).to_contain_text("Your session has ended")
        await page.get_by_role("button", name="Sign in again").click()
    await expect(page.get_by_test_id("event")).to_have_count(20)
    await expect(page.get_by_test_id("message")).to_be_hidden()


async def test_another_person_sees_their_own_events(open_as: Open) -> None:
    """Those of the other organization alone; what Ada read, only Ada read."""
    page = await open_as()
    unread = (await ask(page, "grace", showUnread=True, take=1))["total"]
    there_are = [event["timestamp"] for event in (await ask(page, "grace"))["events"]]
    await page.get_by_test_id("mark-all").click()
    await page.get_by_test_id("user").select_option("grace")
    await expect_badge(page, unread)
    await expect(page.locator("time").first).to_have_attribute("datetime", there_are[0])
    assert await times(page) == there_are
    await expect(page).to_have_url("/#grace")


async def test_who_has_no_organization_is_told_why_nothing_is_there(open_as: Open) -> None:
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


@pytest.mark.parametrize(
    ("details", "name"),
    [
        ('{"name": "The logs"}', "The logs"),
        *[(text, "id-7") for text in ('{"name": {}}', '{"name": ""}', "null", "not JSON", None)],
    ],
)
async def test_an_event_is_named_by_its_details_or_its_id(
    context: BrowserContext, details: str | None, name: str
) -> None:
    """Details are whatever the platform wrote; and an id above 2^53 goes back as it came."""
    page = await context.new_page()
    event = {
        "timestamp": "2026-01-01T00:00:00.000Z",
        "contextId": "id-7",
        "context": "bucket",
        "event": "created",
        "orgId": "analytical",
        "userId": "grace",
        "userName": "Grace Hopper",
        "userEmail": "grace@flowmatic.example",
        "workspaceId": None,
        "jsonData": details,
        "showUnread": True,
        "id": 2**53 + 1,
    }
    answer = {"events": [event], "take": 20, "nextCursor": None}
    await page.route(LIST, lambda route: route.fulfill(json=answer))
    await page.goto("/#ada")
    sentence = page.locator(".sentence")
    await expect(sentence).to_have_text(f"Grace Hopper created bucket “{name}”")
    async with page.expect_request(MARK) as mark:
        await page.get_by_test_id("mark-one").click()
    assert (await mark.value).post_data == '{"id":9007199254740993}'


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
    await expect(focused).to_have_attribute("aria-expanded", "false")
    await page.keyboard.press("Enter")
    await expect(focused).to_have_attribute("aria-expanded", "true")
    await tab_to("unread-filter")
    await tab_to("mark-all")
    await tab_to("mark-one")
    await page.keyboard.press("Enter")
    await expect(focused).to_have_attribute("data-testid", "mark-unread")
    await expect_badge(page, unread - 1)
    await page.keyboard.press("Space")
    await expect(focused).to_have_attribute("data-testid", "mark-one")
    await expect_badge(page, unread)


async def test_fits_a_narrow_phone(open_as: Open) -> None:
    """At 320 pixels nothing is cut off and nothing scrolls sideways, message included."""
    page = await open_as()
    await page.set_viewport_size({"width": 320, "height": 640})
    await expect(page.get_by_test_id("user")).to_have_accessible_name("Signed in as")
    await refuse(page, MARK)
    await page.get_by_test_id("mark-one").first.click()
    await expect(page.get_by_test_id("retry")).to_be_in_viewport()
    assert await page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.skipif(not AXE.exists(), reason="`make client` has not installed axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 360])
async def test_axe_finds_nothing(
    open_as: Open, scheme: Literal["light", "dark"], width: int
) -> None:
    """With read and unread events and a message, light and dark, on a desk and on a phone."""
    page = await open_as()
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    await page.set_viewport_size({"width": width, "height": 700})
    await page.get_by_test_id("event").nth(1).click()
    await expect(page.get_by_test_id("mark-unread")).to_have_count(1)
    await refuse(page, LIST)
    await come_back(page)
    await expect(page.get_by_test_id("message")).to_be_visible()
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("axe.run().then(({ violations }) => violations)")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


async def test_violates_no_policy_and_logs_no_error(context: BrowserContext) -> None:
    """The Content-Security-Policy is strict, and the page lives with it in silence."""
    wrong: list[str] = []
    page = await context.new_page()
    page.on("console", lambda said: wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
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
    await page.get_by_test_id("more").click()
    await expect(page.get_by_test_id("event")).to_have_count(40)
    await page.get_by_test_id("mark-all").click()
    await expect(page.get_by_test_id("mark-all")).to_be_disabled()
    await page.get_by_test_id("user").select_option("grace")
    await expect(page.get_by_test_id("event")).to_have_count(20)
    assert wrong == []
