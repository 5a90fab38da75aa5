"""GET /openapi.yaml: the contract of all endpoints, for people and programs."""

from aiohttp import web

from service import resource

TEXT = resource("openapi.yaml").read_bytes()


async def answer(_: web.Request) -> web.Response:
    """Return the file."""
    return web.Response(body=TEXT, content_type="application/yaml")
