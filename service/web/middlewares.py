"""What surrounds every handler: errors into answers, tokens into users."""

import logging

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.auth.tokens import Tokens
from service.config import Limits
from service.errors import (
    InvalidToken,
    Refusal,
    Unauthenticated,
    Unavailable,
)
from service.turns import TOO_MUCH, Turns
from service.web.answers import error_response
from service.web.cors import Cors
from service.web.request_info import arrive, info

log = logging.getLogger(__name__)

LARGE_BODY = 8192  # bytes; more takes the loop some time to read and parse
LARGE_EACH = 2  # such bodies of one caller at a time; the caller's others are not read meanwhile
LARGE_MOST = 100  # with those that wait, each with up to half a megabyte; their clients may be gone
# Requests of one caller under way: a quarter of all connections, and no more than what the loop can
# read at once without a pause that others feel.
SHARE, MOST_EACH = 4, 256


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure in the one shape; the outermost, so it sees 404 and 405 too."""
    asked = arrive(request)
    try:
        return await handler(request)
    except Refusal as error:
        asked.cause = error.cause
        return error_response(error.status, str(error), error.headers())
    except web.HTTPException as error:
        return http_error(error)
    except Exception:
        log.exception("internal error", extra={"request": asked.request_id})
        return error_response(500, "internal server error")


def http_error(error: web.HTTPException) -> web.Response:
    """Shape one of aiohttp's own refusals."""
    kept = {str(name): error.headers[name] for name in (hdrs.ALLOW,) if name in error.headers}
    return error_response(error.status, error.reason.lower(), kept)


def bearer(
    tokens: Tokens, public: frozenset[Handler], cors: Cors, limits: Limits, most: int
) -> Middleware:
    """Let a request reach its handler only with a valid token, unless the handler is public.

    A caller's large bodies take turns, within `limits`, so that the loop has time for others. Of
    `most` connections one caller's requests leave some to others.

    A preflight has no token (Fetch, section 4.8) and reaches no handler: it is answered here.
    """
    turns = Turns(LARGE_EACH, LARGE_MOST)
    share = max(min(most // SHARE, MOST_EACH), 1)
    under_way: dict[str, int] = {}  # requests of each caller

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        match = request.match_info
        if match.http_exception is None:
            if match.handler not in public:
                asked = info(request)
                asked.user_id = caller = await tokens.user_id(_credentials(request))
                if (count := under_way.get(caller, 0)) >= share:
                    raise Unavailable(TOO_MUCH, "share of the connections")
                under_way[caller] = count + 1
                try:
                    if _is_large(request):
                        async with turns.take(caller, asked.arrived + limits.deadline):
                            return await handler(request)
                    return await handler(request)
                finally:
                    if under_way[caller] > 1:
                        under_way[caller] -= 1
                    else:
                        del under_way[caller]
        elif request.method == hdrs.METH_OPTIONS and cors.pages:
            return cors.preflight(request)
        return await handler(request)

    return authenticate


def _is_large(request: web.Request) -> bool:
    """Whether the body is large, or may be, since it does not say."""
    length = request.content_length
    return request.can_read_body if length is None else length > LARGE_BODY


def _credentials(request: web.Request) -> str:
    """The value of the one Authorization header."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if not values:
        raise Unauthenticated("authentication required")
    if len(values) > 1:
        raise InvalidToken("more than one Authorization header", "two headers")
    return values[0]
