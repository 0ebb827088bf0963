"""Let in who knows the token, from pages of this service alone.

Other users of the machine reach a loopback port too, and pages of other sites reach it through the user's browser: so every request needs
the token, a host name that is allowed, and no other site's origin.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scopemill.deploy.studio.problems import problem
from scopemill.proto.runtime import runtime_folder

API = "/api/"
OPEN = ("/api/v1/session", "/api/v1/health")  # what needs no token: to give one, and to ask whether the service lives
SAFE = ("GET", "HEAD", "OPTIONS")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Access:
    """Hold who may do what."""

    token: str
    port: int  # of the service: names its cookie, since browsers share cookies between ports
    hosts: tuple[str, ...] = LOOPBACK_NAMES
    read_only: bool = False
    encrypted: bool = False

    @property
    def cookie(self) -> str:
        """Return the name of the cookie."""
        return f"scopemill-studio-{self.port}"

    @property
    def pass_word(self) -> str:
        """Return the cookie's value.

        It shows that its bearer knew the token, and does not tell it.
        """
        return hmac.new(self.token.encode(), b"scopemill studio", sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        """Return True for the right token, in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def is_known(self, headers: Headers) -> bool:
        """Return True if a request carries the cookie, or the token as a bearer's."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.pass_word.encode())

    def cookie_header(self) -> str:
        """Return the header that sets the cookie."""
        return f"{self.cookie}={self.pass_word}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000" + (
            "; Secure" if self.encrypted else ""
        )

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return why a request is refused, as status and sentence, or None."""
        headers, method, path = Headers(scope=scope), scope.get("method", "GET"), scope["path"]
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            return (
                421,
                f"this service is not called {_name(host)!r}: start it with --allow-host {_name(host) or 'NAME'} if that is its name",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, f"requests from {origin} are refused: only this service's own page may send them"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and (path.startswith(API)):
            return 403, "requests from other sites are refused"
        if not path.startswith(API) or path in OPEN:
            return None
        if not self.is_known(headers):
            return 401, "open the address that scopemill studio printed: it holds the token that this service asks for"
        if self.read_only and scope["type"] == "http" and method not in SAFE:
            return 403, "this service only shows: it was started with --read-only"
        return None


class Guard:
    """Refuse requests as `Access` says, and add the security headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or open one connection."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        refused = self._access.refusal(scope)
        if scope["type"] == "websocket":
            if refused:
                await receive()
                return await send({"type": "websocket.close", "code": 4403, "reason": refused[1][:120]})
            return await self._app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store" if scope["path"].startswith(API) else "no-cache")
            await send(message)

        answer: ASGIApp | Response = problem(*refused, instance=scope["path"]) if refused else self._app
        await answer(scope, receive, guarded)


def kept_token(bucket: str) -> str:
    """Return the token of a bucket's service, which this user keeps.

    So open pages go on when the service is started again.
    """
    path = Path(runtime_folder()) / "studio" / f"{sha256(bucket.encode()).hexdigest()[:16]}.token"
    try:
        if token := path.read_text().strip():
            return token
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(token)
    return token


def allowed_hosts(host: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the host names by which the service may be called."""
    return tuple(dict.fromkeys((*LOOPBACK_NAMES, *([host] if host not in ("0.0.0.0", "::") else []), *(name.lower() for name in names))))


def _name(host: str) -> str:
    """Return the name of a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
