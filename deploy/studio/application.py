"""Name every route of the service."""

from fastapi import FastAPI

from scopemill.deploy.studio.routes import live, session, trainings
from scopemill.deploy.studio.service import Settings, create_app


def application(settings: Settings) -> FastAPI:
    """Return the service's application."""
    return create_app(settings, [module.router for module in (session, live, trainings)])
