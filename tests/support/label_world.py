"""Evidence of latents with a planted meaning, and an endpoint that knows it: a real HTTP server on loopback."""

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.evidence.schema import EXAMPLES, LATENTS
from scopemill.evaluator.evidence.store import example_batches, write_evidence
from scopemill.proto.evidence import BINS, TOP
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary

HASH = "abcdefabcdef0123"
BOS, WIDTH, DEAD, ONE_DOCUMENT, WINDOW = 0, 40, 39, 38, 12
FILLER = ["lorem", "ipsum", "dolor", "amet", "elit", "sed", "magna", "aliqua", "ut", "enim"]
PLANTED = [f"word{letter}{other}" for letter in "abcdefgh" for other in "vwxyz"]  # latent i fires on PLANTED[i]
WORDS = ["<bos>", *FILLER, *PLANTED]


def write(bucket: Bucket, sae: str) -> Evidence:
    """Latent i fires on its word alone; the last one never, and the one before in a single document."""
    random = np.random.default_rng(0)
    rows, examples = [], []
    for latent in range(WIDTH):
        listed = [] if latent == DEAD else [_example(random, latent, i) for i in range(32)]
        examples.append(listed)
        near = [(latent + step) % WIDTH for step in (1, 2, 3)]
        facts = {"fired": 100 * (latent + 1), "density": (latent + 1) / 1000} if listed else {"fired": 0, "density": 0.0}
        rows.append(
            {"latent": latent, **facts, "max": 8.0, "mean": 4.0, "std": 1.0, "histogram_range": 8.0, "histogram": [0] * BINS,
             "promoted_tokens": [1, 2], "promoted_values": [1.0, 0.5], "suppressed_tokens": [3], "suppressed_values": [-1.0],
             "nearest_latents": near, "nearest_cosines": [0.9, 0.8, 0.7], "cofiring_latents": [], "cofiring_phi": [], "cluster": 0,
             "decoder_norm": 1.0}
        )  # fmt: skip
    about = {"sae": sae, "model": "tiny", "model_place": "models/tiny", "inputs": ["blocks.2.hook_resid_post"],
             "outputs": ["blocks.2.hook_resid_post"], "architecture": "jumprelu", "width": WIDTH, "source": "shards", "dataset": "demo",
             "dtype": "float32", "rows": 100_000, "sequences": 800, "context_length": 128, "settings": {}}  # fmt: skip
    words = Vocabulary([word.encode() if word == "<bos>" else f" {word}".encode() for word in WORDS], frozenset({BOS}))
    batches = example_batches(0, pa.array(examples, EXAMPLES.field("examples").type))
    write_evidence(bucket, EvidenceLayout(sae, HASH), batches, lambda: pa.Table.from_pylist(rows, schema=LATENTS), words, about)
    return Evidence.open(bucket, sae, HASH)


def _example(random: np.random.Generator, latent: int, number: int) -> dict[str, Any]:
    """A window in which the latent's word stands once or twice, behind the end of another document."""
    tokens = random.integers(1, len(FILLER) + 1, WINDOW)
    tokens[0], tokens[1] = WORDS.index(PLANTED[(latent + 7) % WIDTH]), BOS  # of the document before
    peak = int(random.integers(3, WINDOW))
    tokens[[peak, 2]] = WORDS.index(PLANTED[latent])
    interval = TOP if number < 12 else 7 - number % 8
    value = 8.0 if interval == TOP else interval + 0.5
    activations = np.where(tokens == tokens[peak], value, 0.0)
    document = 7 if latent == ONE_DOCUMENT else 100 * latent + number
    return {"interval": interval, "value": value, "peak": peak, "document": document, "position": peak - 2, "shard": 0,
            "sequence": 100 * latent + number, "start": 0, "tokens": tokens.tolist(), "activations": activations.tolist()}  # fmt: skip


class FakeEndpoint:
    """Answers as a language model that reads marks and labels right, or badly in a chosen way."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.logprobs = True  # given where they are asked for
        self.lies = False  # labels are of another latent
        self.failing: list[tuple[int, dict[str, str], str]] = []  # status, headers and text of the next replies
        self.always: tuple[int, dict[str, str], str] | None = None
        self.content: str | None = None  # of every answer
        self.refuses: set[str] = set()  # fields
        self.pause = 0.0
        self.one_at_a_time: Any = nullcontext()  # a lock: works on one request after the other, also on those that nobody waits for
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            failing = self.failing.pop(0) if self.failing else self.always
        if failing:
            return failing
        if refused := self.refuses & set(body):
            return 400, {}, json.dumps({"error": {"message": f"Unsupported parameter: {sorted(refused)[0]}"}})
        words = self._answer(body["messages"][-1]["content"]) if self.content is None else [self.content]
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": " ".join(words)}}
        if body.get("logprobs") and self.logprobs:
            choice["logprobs"] = {"content": [_token(f" {word}") for word in words]}
        return 200, {}, json.dumps({"choices": [choice]})

    def _answer(self, content: str) -> list[str]:
        instruction, *parts = re.split(r"\n\nText \d+:\n", content)
        marks = [[word for found in re.findall(r"<<(.*?)>>", text) for word in found.split()] for text in parts]
        if "Reply with the phrase alone" in instruction:
            word = Counter(mark for found in marks for mark in found).most_common(1)[0][0]
            return ["the", "word", PLANTED[(PLANTED.index(word) + 13) % WIDTH] if self.lies else word]
        if "Which text is that" in instruction:
            firsts = [found[0] for found in marks]
            return [str(1 + min(range(len(firsts)), key=lambda i: firsts.count(firsts[i])))]
        label = re.search(r"the word (\w+)", instruction)
        assert label
        if "between <<" in instruction:
            return ["yes" if set(found) == {label[1]} else "no" for found in marks]
        return ["yes" if label[1] in text else "no" for text in parts]


def _token(word: str) -> dict[str, Any]:
    shares = {word: 0.9, {" yes": " no", " no": "Yes"}.get(word, " 9"): 0.08, "I": 0.02}
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    return {"token": word, "logprob": math.log(0.9), "top_logprobs": top}


@contextmanager
def serving(fake: FakeEndpoint) -> Iterator[str]:
    """The base URL of a fake endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            with fake._lock:
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, text = fake.reply(body, dict(self.headers))
            with fake.one_at_a_time:
                time.sleep(fake.pause)
            data = text.encode()
            with fake._lock:
                fake.at_once -= 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:  # the client has given up
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
