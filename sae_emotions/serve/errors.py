"""One shape for everything that can go wrong: `{"error": {"status", "code", "message"}}`."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sae_emotions.errors import UserError
from sae_emotions.lookup.tables import Unknown
from sae_emotions.progress import say
from sae_emotions.serve.paging import BadCursor

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 422: "invalid_parameter", 503: "not_ready"}


def answer(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the one shape."""
    body = {"error": {"status": status, "code": code or _CODES.get(status, "error"), "message": message}}
    return JSONResponse(body, status, dict(headers or {}))


def handle_errors(app: FastAPI) -> None:
    """Give every error of `app` the one shape."""

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return answer(404, f"There is nothing at {request.url.path}; /openapi.json lists what there is.")
        if error.status_code == 405:
            message = f"{request.method} is not answered here; this API is read with GET."
            return answer(405, message, headers=error.headers)
        return answer(error.status_code, f"{error.detail}.", headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        return answer(422, f"Parameter '{first['loc'][-1]}': {first['msg']}{given}.")

    @app.exception_handler(BadCursor)
    async def cursor(request: Request, error: BadCursor) -> JSONResponse:
        message = "The cursor does not belong to this list, or the run has changed since; start again without a cursor."
        return answer(400, message, "bad_cursor")

    @app.exception_handler(UserError)
    async def user(request: Request, error: UserError) -> JSONResponse:
        return answer(404 if isinstance(error, Unknown) else 503, str(error))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        say(f"{request.method} {request.url.path}: {type(error).__name__}: {error}")
        return answer(500, "This is a bug of the server, not of your request; its log names the cause.", "internal")
