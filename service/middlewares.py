"""What surrounds every handler: errors into answers, tokens into users."""

import logging

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.answers import error_response
from service.context import arrive, context
from service.errors import (
    InvalidHeader,
    InvalidToken,
    Refusal,
    Unauthenticated,
)
from service.tokens import Tokens

log = logging.getLogger(__name__)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure in the one shape; the outermost, so it sees 404 and 405 too."""
    asked = arrive(request)
    try:
        return await handler(request)
    except Refusal as error:
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


def bearer(tokens: Tokens, public: frozenset[Handler]) -> Middleware:
    """Let nobody without a valid token reach a handler that is not declared public."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        match = request.match_info
        if match.http_exception is None and match.handler not in public:
            if request.method == hdrs.METH_OPTIONS:
                check_preflight(request)
            else:
                context(request).user_id = await tokens.user_id(_credentials(request))
        return await handler(request)

    return authenticate


def _credentials(request: web.Request) -> str:
    """The value of the one Authorization header."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if not values:
        raise Unauthenticated("authentication required")
    if len(values) > 1:
        raise InvalidToken("more than one Authorization header")
    return values[0]


def check_preflight(request: web.Request) -> None:
    """A preflight carries no credentials (Fetch, section 4.8); its headers are echoed, so ASCII."""
    if not all(value.isascii() for value in request.headers.values()):
        raise InvalidHeader("a header is not ASCII")
