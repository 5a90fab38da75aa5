"""Demo mode: a page with a bell, and tokens for its users. Only with an embedded database."""

from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from service import resource
from service.auth.tokens import sign
from service.config import Config
from service.database.connections import Connections
from service.database.retry import fetch
from service.demo.mode import is_loopback
from service.errors import WrongHost
from service.web.request_info import info

FOLDER = Path(__file__).parent
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
DEADLINE = 5.0  # seconds
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(config: Config, reads: Connections) -> list[web.RouteDef]:
    """The page at /, its files, and /demo/users: who can be tried, each with a token."""
    query = (FOLDER / "users.sql").read_text()

    async def users(request: web.Request) -> web.Response:
        rows = await fetch(reads, query, deadline=info(request).arrived + DEADLINE)
        found = [{**row, "token": sign(config.auth, row["id"])} for row in rows]
        return web.json_response({"users": found})

    # The client is that of client/, where other pages take it from, too.
    parts = [(path, f"/demo/{path.name}") for path in FOLDER.iterdir() if path.suffix in TYPES]
    parts += [(path, f"/demo/client/{path.name}") for path in resource("client").glob("*.js")]
    return [
        web.get("/demo/users", _only_here(users), allow_head=False),
        web.get("/", _only_here(_file(FOLDER / "index.html", "text/html")), allow_head=False),
        *(
            web.get(where, _only_here(_file(path, TYPES[path.suffix])), allow_head=False)
            for path, where in parts
        ),
    ]


def _file(path: Path, content_type: str) -> Handler:
    def read() -> web.Response:
        return web.Response(
            body=path.read_bytes(),
            content_type=content_type,
            charset="utf-8",
            headers={"Content-Security-Policy": POLICY},
        )

    async def answer(_: web.Request) -> web.Response:
        return read()

    return answer


def _only_here(handler: Handler) -> Handler:
    """Answer a browser only where it was sent to this machine by name.

    Otherwise another site could give its own name the address 127.0.0.1 (DNS rebinding), and its
    pages could read the tokens.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        if not _names_this_machine(request.headers.get(hdrs.HOST, "")):
            raise WrongHost("the demo is on localhost only")
        return await handler(request)

    return answer


def _names_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
