"""Turn our errors into problem documents (RFC 9457).

They have the sentence that the command line prints.
"""

import re
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from scopemill.deploy.studio.models.session import Problem
from scopemill.proto.errors import Conflict, CorruptObject, InputError, MissingObject, PartlyFailed, ScopemillError, StorageError

MEDIA_TYPE = "application/problem+json"
STATUSES: tuple[tuple[type[ScopemillError], HTTPStatus], ...] = (  # the first that fits counts
    (MissingObject, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (CorruptObject, HTTPStatus.INTERNAL_SERVER_ERROR),
    (StorageError, HTTPStatus.SERVICE_UNAVAILABLE),
    (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (PartlyFailed, HTTPStatus.INTERNAL_SERVER_ERROR),
)


def problem(status: int, detail: str, kind: str = "about:blank", instance: str | None = None) -> JSONResponse:
    """Return a problem document as an answer."""
    document = Problem(type=kind, title=HTTPStatus(status).phrase, status=status, detail=detail, instance=instance)
    return JSONResponse(document.model_dump(), status, media_type=MEDIA_TYPE)


def problem_of(error: ScopemillError, instance: str | None = None) -> JSONResponse:
    """Return the problem document of one of our errors."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
    return problem(status, str(error), f"urn:scopemill:problem:{name}", instance)


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of the application a problem document."""

    @app.exception_handler(ScopemillError)
    async def ours(request: Request, error: ScopemillError) -> JSONResponse:
        return problem_of(error, request.url.path)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        detail = f"the service could not answer: {type(error).__name__}: {error}; its log tells more"
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail, instance=request.url.path)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]}: {one['msg'].lower()}" for one in error.errors()]
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "\n".join(wrong), instance=request.url.path)
