"""Run a real S3 server on loopback, in one process: OpenStack Swift with its S3 interface.

    python tests/support/s3_server.py ROOT PORT ACCESS SECRET

The server keeps its files in ROOT, on a file system with extended attributes. It prints ``ready`` and its address once
it answers. PORT 0 means a free port. The server ends with the process that started it.

Swift is a proxy in front of three servers (accounts, containers, objects). Each is a WSGI application, so all four can run as green
threads of one process. ``running_s3_server`` starts such a process for as long as a block runs.
"""

import os
import secrets
import select
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from time import monotonic

HOST = "127.0.0.1"
SECONDS_TO_START = 60
SECONDS_TO_STOP = 10
BACKENDS = ("account", "container", "object")

SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = tests

[storage-policy:0]
name = only
default = yes
"""

BACKEND_CONF = Template("""
[DEFAULT]
swift_dir = $root
devices = $root/devices
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
log_level = ERROR

[app:main]
use = egg:swift#$backend
""")

# Requests pass through from left to right. The S3 interface needs tempauth for its keys and slo for multi-part uploads.
PROXY_CONF = Template("""
[DEFAULT]
swift_dir = $root
log_level = ERROR

[pipeline:main]
pipeline = catch_errors gatekeeper create_once cache s3api tempauth bulk slo versioned_writes copy proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

[filter:create_once]
paste.filter_factory = s3_server:create_once

[filter:cache]
paste.filter_factory = s3_server:memory_cache

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
check_bucket_owner = false
min_segment_size = 1

[filter:tempauth]
use = egg:swift#tempauth
$user = $secret .admin

[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:bulk]
use = egg:swift#bulk
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:copy]
use = egg:swift#copy
""")


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    access_key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables that S3 client libraries read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def running_s3_server(root: Path | str) -> Iterator[S3Server]:
    """Run a server in its own process on a free port; raise RuntimeError if it does not start."""
    # tempauth wants an account and a user.
    access_key, secret = "scopemill:tests", secrets.token_hex(16)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, str(root), "0", access_key, secret], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            ready, _, _ = select.select([process.stdout], [], [], SECONDS_TO_START)
            word, _, endpoint = (process.stdout.readline() if ready else b"").decode().strip().partition(" ")
            if word != "ready":
                errors.seek(0)
                raise RuntimeError(f"the S3 server did not start: {errors.read().decode(errors='replace').strip() or 'it said nothing'}")
            yield S3Server(endpoint, access_key, secret)
        finally:
            process.terminate()
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def serve(root: Path, port: int, access_key: str, secret: str) -> None:
    """Run all of Swift in this process until it is ended, or until its parent is gone."""
    import eventlet
    from swift.common.utils import eventlet_monkey_patch, set_swift_dir
    from swift.common.wsgi import loadapp

    parent = os.getppid()
    eventlet_monkey_patch()
    # Swift's modules read their configuration on import: the files must exist before.
    (root / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    (root / "swift.conf").write_text(SWIFT_CONF)
    set_swift_dir(str(root))
    sockets = {name: eventlet.listen((HOST, 0), backlog=1024) for name in BACKENDS}
    for name, socket in sockets.items():
        (root / f"{name}-server.conf").write_text(BACKEND_CONF.substitute(root=root, backend=name))
        write_ring(root / f"{name}.ring.gz", socket.getsockname()[1])
    sockets["proxy"] = eventlet.listen((HOST, port), backlog=1024)
    user = "user_" + access_key.replace(":", "_")
    (root / "proxy-server.conf").write_text(PROXY_CONF.substitute(root=root, user=user, secret=secret))
    for name, socket in sockets.items():
        eventlet.spawn(answer, socket, loadapp(str(root / f"{name}-server.conf")))
    print(f"ready http://{HOST}:{sockets['proxy'].getsockname()[1]}", flush=True)
    while os.getppid() == parent:
        eventlet.sleep(1)


def write_ring(path: Path, port: int) -> None:
    """Write Swift's ring: one copy of all data, on the server at ``port``."""
    from swift.common.ring import RingBuilder

    builder = RingBuilder(part_power=2, replicas=1, min_part_hours=0)
    place = {"ip": HOST, "port": port, "replication_ip": HOST, "replication_port": port, "device": "disk"}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "meta": "", **place})
    builder.rebalance()
    builder.get_ring().save(str(path))


def answer(socket, application) -> None:
    """Serve a WSGI application on a socket forever."""
    import eventlet.wsgi
    from swift.common.wsgi import SwiftHttpProtocol

    with open(os.devnull, "w") as log:
        eventlet.wsgi.server(socket, application, log, protocol=SwiftHttpProtocol)


def create_once(global_conf: dict, **local_conf: str):
    """Return a filter that lets one conditional PUT of an object through at a time: exactly one writer creates it.

    Amazon's S3 promises this. Swift answers 412 for an existing object, but checks before it has the bytes: several
    simultaneous writers would succeed.
    """
    from eventlet.semaphore import Semaphore

    turns = defaultdict(Semaphore)

    def around(app):
        def application(environ: dict, start_response):
            if environ["REQUEST_METHOD"] != "PUT" or "HTTP_IF_NONE_MATCH" not in environ:
                return app(environ, start_response)
            with turns[environ["PATH_INFO"]]:
                return list(app(environ, start_response))

        return application

    return around


def memory_cache(global_conf: dict, **local_conf: str):
    """Return a filter that replaces memcached, which tempauth requires."""
    return MemoryCache


class MemoryCache:
    """Do in a dict what Swift uses of memcached. No lock is needed: green threads switch only when they wait."""

    def __init__(self, app):
        self.app = app
        self.kept: dict[str, tuple[object, float]] = {}

    def __call__(self, environ: dict, start_response):
        environ["swift.cache"] = self
        return self.app(environ, start_response)

    def get(self, key: str, raise_on_error: bool = False):
        value, until = self.kept.get(key, (None, 0.0))
        return value if until > monotonic() else None

    def set(self, key: str, value, serialize: bool = True, time: float = 0, **options) -> None:
        self.kept[key] = (value, monotonic() + time if time else float("inf"))

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        value = max(0, int(self.get(key) or 0) + delta)
        self.set(key, value, time=time)
        return value

    def decr(self, key: str, delta: int = 1, time: float = 0) -> int:
        return self.incr(key, -delta, time)

    def delete(self, key: str, server_key: str | None = None) -> None:
        self.kept.pop(key, None)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3], sys.argv[4])
