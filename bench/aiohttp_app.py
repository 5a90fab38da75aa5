"""aiohttp alone: reads the body and answers, with no token, no check and no database.

What is left of a request when everything of ours is taken away: nothing built on it can cost less.
Started with the port as its only argument.
"""

import sys

import uvloop
from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    """Answer as the service does."""
    await request.read()
    return web.Response(body=b'{"success":true}', content_type="application/json")


def main() -> None:
    """Serve until SIGTERM."""
    app = web.Application()
    app.add_routes([web.post("/systemevent/read", answer), web.get("/ready", answer)])
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
