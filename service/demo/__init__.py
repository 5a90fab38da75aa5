"""Demo mode: a page with a bell, and tokens for its users. Only with an embedded database."""

from pathlib import Path

from aiohttp import web

from service.config import Config
from service.database import Database
from service.tokens import sign

FOLDER = Path(__file__).parent
DEADLINE = 5.0  # seconds
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(config: Config, database: Database) -> list[web.RouteDef]:
    """The page at /, its files, and /demo/users: who can be tried, each with a token."""
    query = (FOLDER / "users.sql").read_text()

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(FOLDER / "index.html", headers={"Content-Security-Policy": POLICY})

    async def file(request: web.Request) -> web.FileResponse:
        return web.FileResponse(FOLDER / request.match_info["name"])

    async def users(_: web.Request) -> web.Response:
        rows = await database.attempt(query, timeout=DEADLINE)
        found = [{**row, "token": sign(config.auth, row["id"])} for row in rows]
        return web.json_response({"users": found})

    return [
        web.get("/", page, allow_head=False),
        web.get("/demo/users", users, allow_head=False),
        web.get(r"/demo/{name:bell\.css|bell\.js|api\.js}", file, allow_head=False),
    ]
