"""Upload features to a Neuronpedia, resumably.

The key comes from the environment alone. It is sent to the given host only: a redirect is not followed, and plain HTTP is refused but on
loopback. What is uploaded is recorded in a folder after each request, so the same command goes on where it ended.
"""

import http.client
import ipaddress
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import IO
from urllib.parse import urlsplit

from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.neuronpedia_api import Batch, batches
from scopemill.evaluator.exports.subject import Part, Subject
from scopemill.proto.errors import InputError, ScopemillError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record

KEY = "NEURONPEDIA_API_KEY"
TIMEOUT_SECONDS = 120.0  # of a request: the server writes some thousand rows
TRIES = 8
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries, about doubling
TOO_LARGE, TOO_MANY = 413, 429


class _Refused(Exception):
    """Hold the answer of a server that did not take a request."""

    def __init__(self, status: int, text: str, pause: float | None):
        super().__init__(f"{status}: {text}")
        self.status, self.pause = status, pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


class Client:
    """Send features to a Neuronpedia, with retries."""

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep):
        key = os.environ.get(KEY)
        if not key:
            raise InputError(f"uploading needs a key: set the environment variable {KEY}")
        _check_url(url)
        self._url, self._key, self._sleep = url.rstrip("/"), key, sleep
        self._opener = urllib.request.build_opener(_NoRedirect)

    def upload(self, batch: Batch, model: str, source: str) -> None:
        """Upload the features of a batch, in smaller requests where needed."""
        try:
            self._retried(batch.body(model, source))
        except _Refused as refused:
            if refused.status != TOO_LARGE or len(batch.features) == 1:
                raise self._error(refused, source) from refused
            for half in batch.halves():
                self.upload(half, model, source)

    def _retried(self, body: bytes) -> None:
        for tried in range(1, TRIES + 1):
            try:
                return self._post(body)
            except _Refused as refused:
                if (refused.status < 500 and refused.status not in (408, TOO_MANY)) or tried == TRIES:
                    raise
                pause = refused.pause
            except (OSError, http.client.HTTPException) as error:
                if tried == TRIES:
                    raise ScopemillError(
                        f"{self._url} cannot be reached: {error}; the features before are uploaded, and the same command goes on there"
                    ) from error
                pause = None
            doubled = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)
            self._sleep(doubled if pause is None else min(pause, LONGEST_PAUSE))

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "X-Api-Key": self._key}
        request = urllib.request.Request(f"{self._url}/api/feature/upload-batch", body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(500).decode(errors="replace")
            after = error.headers.get("Retry-After", "")
            raise _Refused(error.code, text, float(after) if after.isdigit() else None) from error

    def _error(self, refused: _Refused, source: str) -> ScopemillError:
        if refused.status in (401, 403):
            return InputError(
                f"{self._url} does not accept the key in {KEY} for {source} ({refused}): only a set's creator may upload to it"
            )
        return ScopemillError(
            f"{self._url} refused features of {source} ({refused}); what was uploaded before is kept, and the same command goes on there"
        )


def upload(client: Client, url: str, folder: Bucket, subject: Subject, names: Names, see: Callable[[int], None]) -> list[str]:
    """Upload every source of an SAE, from where an earlier run ended.

    Returns the sources' pages.
    """
    pages = []
    for part in subject.parts:
        model, source = names.model_id(subject), names.source_id(subject, part)
        progress = _Progress(folder, f"upload-{source}.json", {"url": url, "model": model, "evidence": subject.evidence.layout.root})
        for batch in batches(subject, part, progress.next):
            client.upload(batch, model, source)
            progress.note(batch.next)
            see(_done(part, batch.next))
        see(_done(part, part.width))
        pages.append(f"{url.rstrip('/')}/{model}/{source}")
    return pages


def _done(part: Part, latents: int) -> int:
    return part.first + latents


class _Progress:
    """Keep which latent comes next, for one target and one evidence."""

    def __init__(self, folder: Bucket, path: str, about: dict[str, str]):
        self._folder, self._path, self._about = folder, path, about
        self.next = 0
        if folder.exists(path):
            known = read_record(folder, path)
            if {name: known.get(name) for name in about} != about:
                raise InputError(f"{folder.place(path)} is of another upload, to {known.get('url')}: choose another folder, or delete it")
            self.next = int(known["next"])

    def note(self, next: int) -> None:
        self.next = next
        self._folder.write(self._path, checksummed_record(self._about | {"next": next}))


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise InputError(f"--upload {url!r} is no address of a Neuronpedia: write it as https://www.neuronpedia.org")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise InputError(f"--upload {url!r} would send the key in the clear: use https")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
