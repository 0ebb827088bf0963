"""Who may talk to a server beyond its own machine: CURVE keys, and the folder that holds them.

server.key  server.key_secret      the server's; trainers need its public half only
trainer.key trainer.key_secret     shared by the sweep's trainers
allowed/*.key                      public keys of those that the server answers: the allow-list
"""

import shutil
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from scopemill.proto.errors import Conflict, InputError

DOMAIN = "scopemill"  # of ZeroMQ's authentication; the allow-list is that of exactly this domain


def make_keys(folder: Path) -> list[Path]:
    """Make a folder of keys; returns its files. Conflict if there are keys already: who uses them would be shut out."""
    if (folder / "server.key_secret").exists():
        raise Conflict(f"{folder} holds keys already: take another folder, or delete it if nobody uses them")
    allowed = folder / "allowed"
    allowed.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("server", "trainer"):
        _, secret = zmq.auth.create_certificates(folder, name)
        Path(secret).chmod(0o600)
    shutil.copy(folder / "trainer.key", allowed / "trainer.key")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerKeys:
    """What guards a server's socket."""

    public: bytes
    secret: bytes
    allowed: Path

    @staticmethod
    def load(folder: str) -> "ServerKeys":
        """InputError, naming the file, if something is missing."""
        allowed = Path(folder) / "allowed"
        if not any(allowed.glob("*.key")):
            raise InputError(f"server.keys: {allowed} holds no public key, so nobody could be served: make keys with `scopemill keys DIR`")
        return ServerKeys(*_load(folder, "server.key_secret"), allowed)

    def guard(self, socket: zmq.Socket, context: zmq.Context) -> ThreadAuthenticator:
        """Before the socket is bound. What is returned answers for the socket until it is stopped."""
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve(domain=DOMAIN, location=str(self.allowed))
        socket.curve_server, socket.zap_domain = True, DOMAIN.encode()
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        return authenticator


@dataclass(frozen=True)
class TrainerKeys:
    """With what a trainer's socket shows who it is, and knows the server."""

    public: bytes
    secret: bytes
    server: bytes

    @staticmethod
    def load(folder: str) -> "TrainerKeys":
        """InputError, naming the file, if something is missing."""
        return TrainerKeys(*_load(folder, "trainer.key_secret"), _load(folder, "server.key")[0])

    def show(self, socket: zmq.Socket) -> None:
        """Before the socket is connected."""
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = self.server, self.public, self.secret


def _load(folder: str, name: str) -> tuple[bytes, bytes | None]:
    path = Path(folder) / name
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise InputError(f"server.keys: {path} is no key: make keys with `scopemill keys DIR`") from error
    if secret is None and name.endswith("_secret"):
        raise InputError(f"server.keys: {path} holds no secret key: make keys with `scopemill keys DIR`")
    return public, secret
