"""Demo mode: a page with a bell, and tokens for its users. Only with an embedded database."""

from pathlib import Path

from aiohttp import web

from service.config import Config
from service.context import context
from service.database import Database
from service.tokens import sign

FOLDER = Path(__file__).parent
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
DEADLINE = 5.0  # seconds
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(config: Config, database: Database) -> list[web.RouteDef]:
    """The page at /, its files, and /demo/users: who can be tried, each with a token."""
    query = (FOLDER / "users.sql").read_text()

    async def page(_: web.Request) -> web.Response:
        return file("index.html")

    async def part(request: web.Request) -> web.Response:
        return file(request.match_info["name"])

    def file(name: str) -> web.Response:
        path = FOLDER / name
        return web.Response(
            body=path.read_bytes(),
            content_type=TYPES[path.suffix],
            charset="utf-8",
            headers={"Content-Security-Policy": POLICY},
        )

    async def users(request: web.Request) -> web.Response:
        rows = await database.fetch(query, deadline=context(request).arrived + DEADLINE)
        found = [{**row, "token": sign(config.auth, row["id"])} for row in rows]
        return web.json_response({"users": found})

    return [
        web.get("/", page, allow_head=False),
        web.get("/demo/users", users, allow_head=False),
        web.get(r"/demo/{name:bell\.css|bell\.js|bell\.svg|api\.js}", part, allow_head=False),
    ]
