"""The gateway's errors and the one place that turns them into OpenAI's error body."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from lychee_server.sse import dump_json

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # nobody reads it; metrics and log call a left request by nginx' number


class GatewayError(Exception):
    """An error that the client gets to see, with its HTTP status and the fields of OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds, where they are known
        self.code = code or type(self).code

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object in its envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(GatewayError):
    """The caller's body is not acceptable."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class BodyTooLarge(InvalidRequest):
    """The body is longer than `max_body_bytes`."""

    status = 413
    code = "request_too_large"


class HeadersTooLarge(InvalidRequest):
    """Request line and headers are longer than `max_header_bytes`."""

    status = 431
    code = "headers_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class NoSuchRoute(InvalidRequest):
    """Path or method are not served here (status 404 or 405)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, code="not_found" if status == 404 else "method_not_allowed")
        self.status = status


class NoSuchModel(InvalidRequest):
    """No model can have this name."""

    status = 404
    code = "model_not_found"


class NotAuthenticated(GatewayError):
    """No key, or one that is not valid."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NoSuchTier(GatewayError):
    """The key is valid, but its tier is not in the policy."""

    status = 403
    type = "invalid_request_error"
    code = "unknown_tier"


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class TooManyRequests(GatewayError):
    """A limit of the gateway or of the caller's tier is reached."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class EngineUnavailable(GatewayError):
    """The engine is not there, or not ready yet."""

    status = 503
    code = "engine_unavailable"


class EngineUnreachable(EngineUnavailable):
    """No connection to the engine could be made."""


class EngineLost(EngineUnavailable):
    """The connection to the engine broke before its answer was complete."""


class QueueTimeout(GatewayError):
    """No place at the engines became free in time."""

    status = 503
    code = "queue_timeout"


class ShuttingDown(EngineUnavailable):
    """The gateway stops and the request's time to finish is over."""

    code = "shutting_down"


class EngineTimeout(GatewayError):
    """The engine is there but silent."""

    status = 504
    code = "engine_timeout"


class EngineFailed(GatewayError):
    """The engine answered with an internal error, or with something that is no answer."""

    status = 502
    code = "engine_error"


class EngineRefused(GatewayError):
    """The engine refused the request (4xx); its own words are passed on."""

    type = "invalid_request_error"

    def __init__(self, message: str, status: int, *, param: str | None, code: str | None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        if status == 429:
            self.type = "rate_limit_error"


def engine_error(status: int, body: bytes) -> GatewayError:
    """Turn an engine's answer with a status of 400 and above into the error the client gets.

    SGLang has two shapes: `{"object": "error", "message", "type", "param", "code"}` and OpenAI's envelope.
    """
    fields = _error_fields(body)
    message = str(fields.get("message") or f"the engine answered with status {status} and no message")
    if status == 503:
        return EngineUnavailable(message)
    if status == NotAuthenticated.status:
        # It is the gateway's own key that is wrong: to the client that is a broken engine, not its own key.
        log.error("the engine refuses the gateway's key (engine_api_key)", extra={"problem": message})
        return EngineFailed("the engine refuses the gateway's key")
    if status >= 500:
        return EngineFailed(message)
    param, code = fields.get("param"), fields.get("code")
    if "context length" in message:
        # OpenAI's code for it: clients look at it to know that they must shorten the conversation.
        code = "context_length_exceeded"
    return EngineRefused(
        message,
        status,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,  # SGLang repeats the status here: no code
    )


def _error_fields(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    fields = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    return fields if isinstance(fields, dict) else {}


def error_response(error: GatewayError, retry_after: int) -> Response:
    """Write an error in OpenAI's shape.

    Args:
        error: what happened.
        retry_after: `Retry-After` of 429 and 503 answers that know no better time, in seconds.
    """
    headers = {}
    if error.status in (429, 503):
        known = error.retry_after
        headers["retry-after"] = str(retry_after if known is None else max(1, math.ceil(known)))
    if error.status == NotAuthenticated.status:
        headers["www-authenticate"] = "Bearer"
    # A message may name what the caller sent, half a surrogate pair in it: that must not become an error of its own.
    return Response(dump_json(error.body()), error.status, headers, "application/json")


def install_error_handlers(app: FastAPI, retry_after: int) -> None:
    """Make `app` answer every error in OpenAI's shape; `retry_after` as in `error_response`."""

    def respond(error: GatewayError) -> Response:
        return error_response(error, retry_after)

    async def on_gateway_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)
        return respond(error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        paths = ", ".join(sorted(path for path in app.openapi()["paths"]))
        response = respond(
            NoSuchRoute(f"{request.method} {request.url.path} is not served; paths are {paths}", error.status_code)
        )
        response.headers.update(error.headers or {})
        return response

    async def on_unexpected(_: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return respond(GatewayError("internal error of the gateway", code="internal_error"))

    async def on_client_gone(_: Request, error: Exception) -> Response:
        # Nobody is left to read it: the status only feeds the metrics and the log.
        return JSONResponse(None, status_code=CLIENT_GONE)

    app.add_exception_handler(GatewayError, on_gateway_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_client_gone)
    app.add_exception_handler(Exception, on_unexpected)
