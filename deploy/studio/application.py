"""Name every route of the service."""

from fastapi import FastAPI

from scopemill.deploy.studio.routes import actions, compare, inference, latents, live, saes, schema, session, sweeps, templates, trainings
from scopemill.deploy.studio.service import Settings, create_app


def application(settings: Settings) -> FastAPI:
    """Return the service's application."""
    # `/trainings/sweep` and `/trainings/schema` come before ids
    modules = (
        session,
        live,
        sweeps,
        schema,
        actions,
        trainings,
        compare,
        templates,
        saes,
        latents,
        inference,
    )
    return create_app(settings, [module.router for module in modules])
