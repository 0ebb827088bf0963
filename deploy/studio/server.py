"""Listen, and serve the application with uvicorn."""

import gc
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import uvicorn

from scopemill.deploy.studio.access import Access, allowed_hosts, kept_token
from scopemill.deploy.studio.application import application
from scopemill.deploy.studio.hub import Hub
from scopemill.deploy.studio.service import Settings
from scopemill.proto.errors import InputError

TOKEN = "SCOPEMILL_STUDIO_TOKEN"  # names the token where a platform keeps secrets
DRAIN_SECONDS = 2  # for open streams to end
LEAST_TOKEN = 16  # letters


def settings_of(
    bucket: str, host: str, port: int, names: Iterable[str], read_only: bool, encrypted: bool
) -> tuple[Settings, socket.socket]:
    """Return the settings and a socket that listens.

    InputError if the port is taken or the token is too short.
    """
    place = bucket if "://" in bucket or "::" in bucket else str(Path(bucket).expanduser().absolute())
    token = os.environ.get(TOKEN) or kept_token(place)
    if len(token) < LEAST_TOKEN:
        raise InputError(f"{TOKEN} has {len(token)} letters: give at least {LEAST_TOKEN}, so that nobody guesses it")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # who is told the address may connect at once
    except OSError as error:
        listening.close()
        raise InputError(f"--host {host} --port {port}: nothing can listen there: {error.strerror}; choose another port") from error
    access = Access(token, listening.getsockname()[1], allowed_hosts(host, names), read_only, encrypted)
    return Settings(place, access), listening


class StudioServer(uvicorn.Server):
    """Serve the application; end the pages' streams at a signal, for which uvicorn would wait."""

    def __init__(self, config: uvicorn.Config, hub: Hub):
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then everything else."""
        self._hub.end()
        await super().shutdown(sockets)


def serve(settings: Settings, listening: socket.socket, certificate: Path | None = None, key: Path | None = None) -> None:
    """Serve until a signal ends the process."""
    app = application(settings)
    gc.freeze()  # a full collection would look through everything that was imported, and hold up every request for 100 ms
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_certfile=str(certificate) if certificate else None,
        ssl_keyfile=str(key) if key else None,
    )
    StudioServer(config, app.state.studio.hub).run(sockets=[listening])
