"""Exchange the token for a cookie, and tell about the service."""

from http import HTTPStatus
from importlib import metadata

from fastapi import APIRouter, HTTPException, Response

from scopemill.deploy.studio.models.session import About, Session
from scopemill.deploy.studio.service import TheStudio

router = APIRouter(tags=["session"])


@router.post("/session", status_code=HTTPStatus.NO_CONTENT)
async def open_session(given: Session, studio: TheStudio) -> Response:
    """Exchange the token for a cookie that no script can read.

    The token stands in the address' fragment.
    """
    if not studio.access.is_token(given.token):
        raise HTTPException(HTTPStatus.UNAUTHORIZED, "this is not the token of this service: open the address that it printed")
    return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": studio.access.cookie_header()})


@router.get("/health")
async def health() -> dict[str, str]:
    """Tell that the service lives; nothing else."""
    return {"status": "alive"}


@router.get("/about")
async def about(studio: TheStudio) -> About:
    """Tell what this service shows and what it may change."""
    snapshot = studio.watcher.trainings.snapshot
    return About(
        version=metadata.version("scopemill"),
        bucket=studio.bucket.url,
        read_only=studio.access.read_only,
        address=studio.settings.address,
        reachable=snapshot.problem is None,
        problem=snapshot.problem,
        read_at=snapshot.read_at or None,
    )
