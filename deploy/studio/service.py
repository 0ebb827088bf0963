"""Hold what all requests share, and assemble the application."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from scopemill.deploy.studio.access import Access, Guard
from scopemill.deploy.studio.bucket_reader import BucketReader
from scopemill.deploy.studio.cache import VersionedCache
from scopemill.deploy.studio.hub import Hub
from scopemill.deploy.studio.latents import Latents
from scopemill.deploy.studio.problems import answer_with_problems
from scopemill.deploy.studio.templates import Templates
from scopemill.deploy.studio.watcher import Watcher
from scopemill.proto.storage.bucket import Bucket

log = logging.getLogger(__name__)
PREFIX = "/api/v1"
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Hold what the command line decides."""

    bucket: str
    access: Access
    address: str | None = None  # of a Ray cluster's dashboard


class Studio:
    """Hold the bucket, what is known of it, and those who listen."""

    def __init__(self, settings: Settings):
        self.settings, self.access = settings, settings.access
        self.bucket = Bucket(settings.bucket)
        self.hub = Hub()
        self.watcher = Watcher(BucketReader(self.bucket), self.hub)
        self.cache = VersionedCache(256)  # of curves
        self.latents = Latents(self.bucket)
        self.templates = Templates(self.bucket)


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what waits for the bucket, without holding up other requests."""
    return await asyncio.to_thread(call, *args, **kwargs)


def studio_of(request: Request = None, websocket: WebSocket = None) -> Studio:  # type: ignore[assignment]
    """Return the service of a request or of a connection."""
    found: Studio = (request or websocket).app.state.studio
    return found


TheStudio = Annotated[Studio, Depends(studio_of)]


def create_app(settings: Settings, routers: list[APIRouter]) -> FastAPI:
    """Return the application: routes below `PREFIX`, and the page's files."""
    studio = Studio(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(studio.watcher.run())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    app = FastAPI(
        title="Scopemill studio",
        version=metadata.version("scopemill"),
        description="Trainings, sweeps, SAEs and latents of one bucket. Errors are problem documents (RFC 9457).",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.studio = studio
    answer_with_problems(app)
    for router in routers:
        app.include_router(router, prefix=PREFIX)
    app.mount("/latent-page", StaticFiles(directory=str(files("scopemill.evaluator.latent_page") / "static")))  # shares its parts
    app.mount("/", StaticFiles(directory=str(files("scopemill.deploy.studio") / "static"), html=True))
    guard: Any = Guard
    app.add_middleware(guard, access=settings.access)
    return app
