"""Hold what all requests share, and assemble the application."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from scopemill.deploy.studio.access import Access, Guard
from scopemill.deploy.studio.bucket_reader import BucketReader
from scopemill.deploy.studio.cache import VersionedCache
from scopemill.deploy.studio.dispatcher import Dispatcher
from scopemill.deploy.studio.gemma_scope import Trees
from scopemill.deploy.studio.helper import Helper
from scopemill.deploy.studio.hub import Hub
from scopemill.deploy.studio.jobs import JobList
from scopemill.deploy.studio.latents import Latents
from scopemill.deploy.studio.launcher import Launcher
from scopemill.deploy.studio.problems import answer_with_problems
from scopemill.deploy.studio.templates import Templates
from scopemill.deploy.studio.watcher import Watcher
from scopemill.proto.storage.bucket import Bucket

log = logging.getLogger(__name__)
PREFIX = "/api/v1"


@dataclass(frozen=True)
class Settings:
    """Hold what the command line decides."""

    bucket: str
    access: Access
    address: str | None = None  # of a Ray cluster's dashboard
    installed: bool = False  # the cluster's image has Scopemill


class Studio:
    """Hold the bucket, what is known of it, and those who listen."""

    def __init__(self, settings: Settings):
        self.settings, self.access = settings, settings.access
        self.bucket = Bucket(settings.bucket)
        self.hub = Hub()
        self.planner, self.importer = Helper("the process that plans"), Helper("the process that imports")
        self.inference = Helper("the process that runs the language model")
        self.launcher = Launcher(self.bucket, settings.address, settings.installed, self.planner)
        self.dispatcher = Dispatcher(self.bucket, self.launcher)
        self.watcher = Watcher(BucketReader(self.bucket, self.launcher.note), self.hub, None if self.access.read_only else self.dispatcher)
        self.trees = Trees(self.importer)
        self.jobs = JobList(self.hub)
        self.cache = VersionedCache(256)  # of curves
        self.latents = Latents(self.bucket)
        self.templates = Templates(self.bucket)

    async def close(self) -> None:
        """End what the service alone does; sweeps go on."""
        self.jobs.cancel()
        self.launcher.close()
        for helper in (self.planner, self.importer, self.inference):
            await helper.close()


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
        await studio.close()

    app = FastAPI(
        title="Scopemill studio",
        version=metadata.version("scopemill"),
        description="Trainings, sweeps, SAEs and latents of one bucket. Errors are problem documents (RFC 9457).",
        openapi_url=None,  # a route makes it without holding up the loop
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
