"""Ask questions through a cache on the bucket: a known answer costs no request."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from scopemill.evaluator.labels.answers import Answer, label_in, read
from scopemill.evaluator.labels.endpoint import BudgetSpent, Endpoint
from scopemill.evaluator.labels.prompts import Question
from scopemill.proto.errors import EndpointError, StorageError
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket

NONSENSE = 20  # answers, after which an endpoint that gave hardly one that can be read is not asked any more
READABLE = 0.1


@dataclass
class Asker:
    """Ask an endpoint several questions at once, and keep every answer."""

    endpoint: Endpoint
    bucket: Bucket
    layout: EvidenceLayout
    cached: int = 0  # answers that cost no request
    _seen: list[bool] = field(default_factory=list)  # of each new answer, whether it could be read

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.endpoint.at_once)

    def close(self) -> None:
        """End all requests that have not begun, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self.endpoint.close()

    def ask(self, questions: Sequence[Question]) -> tuple[list[Answer | None], EndpointError | None | BudgetSpent]:
        """Return the answers, None where there is none, and why some are missing."""
        futures: list[Future[Answer]] = [self._threads.submit(self._ask, question) for question in questions]
        wait(futures)
        answers: list[Answer | None] = []
        reason: EndpointError | BudgetSpent | None = None
        for future in futures:
            error = future.exception()
            if error is not None and not isinstance(error, EndpointError | BudgetSpent):
                raise error
            reason = reason or error
            answers.append(None if error else future.result())
        return answers, reason

    def _ask(self, question: Question) -> Answer:
        body = question.body(self.endpoint.model)
        path = self.layout.answer(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32])
        if (known := self._known(path)) is not None:
            self.cached += 1
            return known
        answer = self.endpoint.ask(body).only(question)
        self.bucket.write(path, json.dumps({"text": answer.text, "tokens": answer.tokens}).encode(), durable=False)
        self._heed(answer, question)
        return answer

    def _known(self, path: str) -> Answer | None:
        """Return a kept answer; a damaged one is asked for again."""
        try:
            fields = json.loads(self.bucket.read(path))
            return Answer(fields["text"], tuple((token, rivals) for token, rivals in fields["tokens"]))
        except (StorageError, ValueError, KeyError, TypeError):
            return None

    def _heed(self, answer: Answer, question: Question) -> None:
        """Stop asking an endpoint whose answers cannot be read."""
        if not question.words and label_in(answer):
            return  # any text is a label: it says nothing
        self._seen.append(bool(question.words) and read(answer, question) is not None)
        if len(self._seen) >= NONSENSE and sum(self._seen) < READABLE * len(self._seen):
            self.endpoint.fail(f"{len(self._seen) - sum(self._seen)} of its {len(self._seen)} answers are neither labels nor verdicts")
