"""Make and load the CURVE keys that a server beyond loopback requires.

A folder of keys holds:

server.key  server.key_secret      the server's pair; trainers need the public key only
trainer.key trainer.key_secret     the pair that all trainers of a sweep share
allowed/*.key                      the allow-list: public keys of the trainers that the server answers
"""

import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from scopemill.proto.errors import Conflict, InputError

DOMAIN = "scopemill"  # domain of ZeroMQ's authentication; the allow-list is bound to it


def make_keys(folder: Path) -> list[Path]:
    """Make a folder of keys and return its files.

    Raises InputError if it cannot be written, and Conflict if it holds keys: their users would be locked out.
    """
    if (folder / "server.key_secret").exists():
        raise Conflict(f"{folder} already holds keys: name another folder, or delete this one if its keys are not in use")
    allowed = folder / "allowed"
    try:
        allowed.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for name in ("server", "trainer"):
            _, secret = zmq.auth.create_certificates(folder, name)
            Path(secret).chmod(0o600)
        shutil.copy(folder / "trainer.key", allowed / "trainer.key")
    except OSError as error:
        raise InputError(f"keys cannot be written into {folder}, {error.strerror}: name a folder that you may write in") from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def is_loopback(host: str) -> bool:
    """Return True for a host that only this machine can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerKeys:
    """Hold a server's key pair and its allow-list."""

    public: bytes
    secret: bytes
    allowed: Path

    @staticmethod
    def load(folder: str) -> "ServerKeys":
        """Load the server's keys.

        Raises InputError, naming the file, for a missing one or a folder that all can write.
        """
        allowed = Path(folder) / "allowed"
        _check_guarded(Path(folder), allowed)
        if not any(allowed.glob("*.key")):
            raise InputError(
                f"server.keys: {allowed} holds no public key, so no trainer could connect: make keys with `scopemill keys DIR`"
            )
        return ServerKeys(*_load_pair(folder, "server.key_secret"), allowed)

    def guard(self, socket: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator:
        """Require a key of the allow-list from every peer; call before the socket is bound.

        The list is read at every handshake. Return the authenticator, which must run as long as the socket is open.
        """
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(DOMAIN, self)
        socket.curve_server, socket.zap_domain = True, DOMAIN.encode()
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        return authenticator

    def callback(self, domain: str, key: bytes) -> bool:
        """Return True if a public key is allowed at this moment: ZeroMQ's authenticator asks."""
        return key.decode() in self.allowed_now()

    def allowed_now(self) -> frozenset[str]:
        """Return the public keys of the allow-list at this moment.

        A file that is no key allows nobody.
        """
        found = set()
        for path in self.allowed.glob("*.key"):
            with suppress(OSError, ValueError):
                found.add(zmq.auth.load_certificate(path)[0].decode())
        return frozenset(found)


@dataclass(frozen=True)
class TrainerKeys:
    """Hold the trainers' key pair and the server's public key."""

    public: bytes
    secret: bytes
    server: bytes

    @staticmethod
    def load(folder: str) -> "TrainerKeys":
        """Load a trainer's keys.

        Raises InputError, naming the file, for a missing one or a folder that all can write.
        """
        _check_guarded(Path(folder))
        return TrainerKeys(*_load_pair(folder, "trainer.key_secret"), _load(folder, "server.key")[0])

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Set the keys on a socket; call before the socket is connected."""
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = self.server, self.public, self.secret


def _check_guarded(*folders: Path) -> None:
    """Raise InputError for a folder in which every user of the machine could put a key."""
    for folder in folders:
        if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH and not os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise InputError(
                f"server.keys: every user of this machine can write in {folder}, and so let anybody in: run chmod o-w {folder}"
            )


def _load_pair(folder: str, name: str) -> tuple[bytes, bytes]:
    public, secret = _load(folder, name)
    if secret is None:
        raise InputError(f"server.keys: {Path(folder) / name} holds no secret key: make keys with `scopemill keys DIR`")
    return public, secret


def _load(folder: str, name: str) -> tuple[bytes, bytes | None]:
    path = Path(folder) / name
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise InputError(f"server.keys: {path} is not a valid key file: make keys with `scopemill keys DIR`") from error
    return public, secret
