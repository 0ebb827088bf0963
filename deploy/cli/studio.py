"""Open the mill in a browser: the command ``scopemill studio``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scopemill.deploy.cli.options import BucketUrl, print_facts
from scopemill.proto.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def studio(
    bucket: BucketUrl,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="A cluster's dashboard that sweeps are submitted to; absent: this machine."),
    ] = None,
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8766,
    host: Annotated[
        str, typer.Option(help="The address to listen at; beyond loopback with --certificate or --insecure only.")
    ] = "127.0.0.1",
    allow_host: Annotated[list[str], typer.Option(metavar="NAME", help="A name by which browsers call it. May be repeated.")] = [],  # noqa: B006
    certificate: Annotated[Path | None, typer.Option(help="A TLS certificate (PEM), with --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    insecure: Annotated[bool, typer.Option(help="Listen beyond loopback without encryption, behind a proxy that encrypts.")] = False,
    installed: Annotated[bool, typer.Option(help="The cluster's image has Scopemill installed: sweep files are sent alone.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Show everything, and change nothing.")] = False,
) -> None:
    """Show and run a bucket's sweeps in a browser."""
    if host not in LOOPBACK and not certificate and not insecure:
        raise InputError(
            f"--host {host}: beyond loopback everybody on the way could read the token: give --certificate and --key, or --insecure "
            "behind a proxy that encrypts"
        )
    if bool(certificate) != bool(key):
        raise InputError("--certificate and --key belong together: give both")
    from scopemill.deploy.studio.server import serve, settings_of

    settings, socket = settings_of(bucket, host, port, allow_host, read_only, encrypted=certificate is not None)
    settings = replace(settings, address=address, installed=installed)
    name = "localhost" if host in (*LOOPBACK, "0.0.0.0", "::") else host
    url = f"http{'s' if certificate else ''}://{name}:{settings.access.port}/#token={settings.access.token}"
    print_facts({"studio": url, "bucket": settings.bucket, "Ctrl-C": "ends it; sweeps go on"})
    serve(settings, socket, certificate, key)
