"""Run the activation server as a Ray actor, one per node with trainers."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.proto.errors import ServerGone
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

ANSWER_SECONDS = 1.0


# A server has no state worth keeping: Ray restarts it, and trainers continue there at their cursors.
@ray.remote(num_cpus=0, max_concurrency=4, max_restarts=3, max_task_retries=3)  # type: ignore[call-overload]
class ServerActor:
    """Serve a bucket's streams to the trainers of a node."""

    def __init__(self, bucket_url: str, config: ServerConfig, streams: int):
        self._server = ActivationServer(Bucket(bucket_url), config, streams)

    def address(self) -> str:
        """Return the address for trainers; for a server on all interfaces, its node's address."""
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return self._server.address.replace("//0.0.0.0:", f"//{node}:").replace("//[::]:", f"//{node}:")

    def expect(self, spec: StreamSpec, cursors: dict[str, int], stop: int) -> None:
        """Keep the window for trainers that will connect together; ``cursors`` holds each trainer's first batch."""
        # The hindmost first, so that the window opens there. If the window moved back later, its reader might already wait for a
        # later shard. In rolling mode that wait would never end: the shard is not made before the hindmost trainer has moved on.
        for consumer, cursor in sorted(cursors.items(), key=lambda item: item[1]):
            self._server.expect(spec, consumer, cursor, stop)

    def expect_no_more(self, spec: StreamSpec, consumer: str) -> None:
        """Free the place of a trainer that has failed and will not connect again."""
        self._server.expect_no_more(spec, consumer)

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()


@dataclass(frozen=True)
class Whereabouts:
    """Find the server's current address when called, also after Ray has restarted the server."""

    server: "ray.actor.ActorHandle[Any]"
    address: str  # the server's first address

    def __call__(self) -> str:
        try:
            address: Any = ray.get(self.server.address.remote(), timeout=ANSWER_SECONDS)
            return str(address)
        except (ActorUnavailableError, GetTimeoutError):  # still restarting
            return self.address
        except ActorDiedError as error:
            raise ServerGone(f"the activation server at {self.address} died, and Ray has used up its restarts") from error
