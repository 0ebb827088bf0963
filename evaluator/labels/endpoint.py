"""Ask an OpenAI-compatible endpoint: bounded, patient, without a trace of the key."""

import email.utils
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from scopemill.evaluator.labels.answers import Answer, answer_of
from scopemill.evaluator.labels.pace import Pace
from scopemill.proto import credentials
from scopemill.proto.errors import EndpointError, InputError

KEY_VARIABLE = "SCOPEMILL_LABEL_KEY"
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 529}
OPTIONAL = ("logprobs", "temperature", "max_tokens")  # fields that some endpoints refuse
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
MOST_BYTES = 4 * 2**20  # of a reply
SHOWN = 200  # characters of an endpoint's own message


class BudgetSpent(Exception):
    """Say that a request was not sent, as the budget of requests is spent."""


@dataclass
class Endpoint:
    """Send requests to ``{url}/chat/completions``, from any number of threads.

    ``at_once``: the most requests under way. ``timeout``: seconds for a whole reply. ``patience``: seconds for which a request is retried.
    ``budget``: the most requests to send, retries included; None: any number.
    """

    url: str
    model: str
    at_once: int = 1
    timeout: float = 60.0
    patience: float = 120.0
    budget: int | None = None
    sent: int = 0
    _refused: set[str] = field(default_factory=set)
    _failed: EndpointError | None = None

    def __post_init__(self) -> None:
        self.url = _completions(self.url)
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(self.timeout), limits=httpx.Limits(max_connections=None))
        except (ValueError, UnicodeError) as error:  # a key with letters that no header can hold
            raise InputError(f"the key in {KEY_VARIABLE} cannot be sent in a header: copy it again") from error
        self._lock, self._pace = threading.Lock(), Pace(self.at_once, self.timeout)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def ask(self, body: dict[str, Any]) -> Answer:
        """Return the answer to a request's body.

        Raises EndpointError if the endpoint is down, too slow, refuses or does not answer as such endpoints do; once it has failed, every
        later request fails at once. Raises BudgetSpent without sending.
        """
        deadline, tries = None, 0
        while True:
            with self._pace.turn():
                deadline = deadline or time.monotonic() + self.patience  # from the first try on
                self._pace.wait(deadline)
                reason, pause = self._attempt(body, tries)
            if isinstance(reason, Answer):
                return reason
            if time.monotonic() + pause > deadline:
                raise self.fail(f"{reason}, after {tries + 1} tries: what is labelled is kept, and the same command goes on later")
            time.sleep(pause)
            tries += 1

    def _attempt(self, body: dict[str, Any], tries: int) -> tuple[Answer | str, float]:
        """Return the answer; or why there is none yet, and the pause before the next try."""
        self._count()
        pause = random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
        left_out = self._refused | ({"top_logprobs"} if "logprobs" in self._refused else set())
        fields = {name: value for name, value in body.items() if name not in left_out}
        began = time.monotonic()
        try:
            status, headers, text = self._send(fields)
        except httpx.TimeoutException:
            self._pace.late()
            return f"no reply within {self.timeout:g} seconds (--timeout)", pause
        except httpx.HTTPError as error:
            return f"{self._redacted(str(error)) or type(error).__name__}", pause
        if status == 200:
            self._pace.answered(time.monotonic() - began)
            return self._answer(text), 0.0
        if status in TRANSIENT:
            asked = _retry_after(headers.get("retry-after"))
            if asked is None:
                return f"status {status}", pause
            self._pace.pause(asked)
            return f"it asks to wait {asked:.0f} seconds (status {status})", asked
        if status in (400, 422) and (names := [name for name in OPTIONAL if name in fields and name in text]):
            self._refused.add(names[0])
            return f"it refuses the field {names[0]}", 0.0
        if status in (401, 403):
            own = f"the key in {KEY_VARIABLE}" if self._key else f"requests without a key, which belongs into {KEY_VARIABLE}"
            raise self.fail(f"it refuses {own} (status {status})")
        told = f"status {status}: {self._message(text)}"
        raise self.fail(f"{told}: is this the base URL, such as http://127.0.0.1:8000/v1, and the model's name there?")

    def _send(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, str]:
        """Return status, headers and text of a reply; a reply that drips in is cut off as late."""
        deadline, data = time.monotonic() + self.timeout, bytearray()
        with self._client.stream("POST", self.url, json=body) as reply:
            for piece in reply.iter_bytes():
                data += piece
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("late")
                if len(data) > MOST_BYTES:
                    raise self.fail(f"a reply of more than {MOST_BYTES >> 20} MiB is no chat completion")
            return reply.status_code, reply.headers, self._redacted(data.decode("utf-8", "replace"))

    def _answer(self, text: str) -> Answer:
        try:
            choice = json.loads(text)["choices"][0]
            answer = answer_of(choice["message"], choice.get("logprobs"))
            return Answer(self._redacted(answer.text), answer.tokens)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self.fail(f"it does not answer as chat completions do, but with {text[:80]!r}") from error

    def _count(self) -> None:
        with self._lock:
            if self._failed:
                raise self._failed
            if self.budget is not None and self.sent >= self.budget:
                raise BudgetSpent
            self.sent += 1

    def fail(self, reason: str) -> EndpointError:
        """Fail every request from now on, and return the error."""
        error = EndpointError(f"{self.url}: {reason}")
        with self._lock:
            self._failed = self._failed or error
        return error

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _message(self, text: str) -> str:
        """Return what the endpoint says of an error."""
        try:
            fields = json.loads(text)
            told = fields.get("error", fields.get("detail"))  # as OpenAI's services or FastAPI's say it
            text = str(told["message"] if isinstance(told, dict) else told)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        return repr(" ".join(self._redacted(text).split())[:SHOWN])


def _completions(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--endpoint {url!r} is not a URL: give the base URL, such as http://127.0.0.1:8000/v1")
    if credentials.in_url(url):
        raise InputError(f"--endpoint holds a password or key: set it in the environment variable {KEY_VARIABLE}")
    url = url.rstrip("/")
    return url if url.endswith("/chat/completions") else f"{url}/chat/completions"


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header names, as a number or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
