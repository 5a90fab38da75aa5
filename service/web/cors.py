"""CORS (Fetch, section 3.2): which pages may call and read answers. Exact origins, no cookies."""

from collections.abc import Mapping

from aiohttp import hdrs, web

from service import config
from service.errors import InvalidHeader, PageRefused

# What a page of another origin may send and may read, beside what Fetch allows to every page
SENT_HEADERS = ("Authorization", "Content-Type", "X-Request-ID", "X-Marked-At")
EXPOSED_HEADERS = ("Retry-After", "WWW-Authenticate", "X-Request-ID", "X-Marked-At")
MAX_AGE = 600  # seconds that a browser may remember a preflight


class Cors:
    """The one place that knows the origins; with none configured it does nothing."""

    def __init__(self, settings: config.Cors) -> None:
        """Allow pages of `settings.origins` to call, and to send `settings.headers` too."""
        names = (*SENT_HEADERS, *settings.headers)
        self._sent = frozenset(name.lower() for name in names)
        self._preflight = {
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ",".join(names),
            hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE),
        }
        # A cache must keep apart what differs by origin, also where there is none.
        self._others: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN} if settings.origins else {}
        self.pages: Mapping[str, Mapping[str, str]] = {
            origin: {
                **self._others,
                hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
                hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: ",".join(EXPOSED_HEADERS),
            }
            for origin in settings.origins
        }

    def headers(self, origin: str | None) -> Mapping[str, str]:
        """What an answer carries for a page of this origin, or for a caller that is no page."""
        return self.pages.get(origin or "", self._others)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add them to an answer (a signal, so it sees those that no handler made)."""
        response.headers.update(self.headers(request.headers.get(hdrs.ORIGIN)))
        if self.pages and hdrs.ALLOW in response.headers:
            response.headers[hdrs.ALLOW] += f",{hdrs.METH_OPTIONS}"

    def preflight(self, request: web.Request) -> web.Response:
        """Allow a page to send its request (Fetch, section 4.8); asked with OPTIONS, and no token.

        On a path that does not exist every method is allowed, so that the page can read the 404.

        Raises:
            web.HTTPNotFound: there is no such path, and no page asks.
            InvalidHeader: a header of the preflight is not ASCII.
            PageRefused: it is no preflight, or asks for what the page may not send.
        """
        origin = request.headers.get(hdrs.ORIGIN, "")
        method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, "")
        names = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        unmatched = request.match_info.http_exception
        if isinstance(unmatched, web.HTTPNotFound) and (origin not in self.pages or not method):
            raise unmatched
        if not (origin + method + names).isascii():
            raise InvalidHeader("a header is not ASCII")
        if origin not in self.pages:
            raise PageRefused("pages of this origin may not call")
        methods = getattr(unmatched, "allowed_methods", {method})
        if method not in methods:
            raise PageRefused("a page may not use this method here")
        if not {name.strip().lower() for name in names.split(",")} - {""} <= self._sent:
            raise PageRefused("a page may not send one of these headers")
        return web.Response(headers={hdrs.ACCESS_CONTROL_ALLOW_METHODS: method, **self._preflight})
