"""The activation server as a Ray actor: one per node with trainers."""

from dataclasses import dataclass

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.proto.errors import ServerGone
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

ANSWER_SECONDS = 1.0


# A server remembers nothing that matters: Ray starts another, and trainers go on there at their cursors.
@ray.remote(num_cpus=0, max_concurrency=4, max_restarts=3, max_task_retries=3)
class ServerActor:
    def __init__(self, bucket_url: str, config: ServerConfig, streams: int):
        self._server = ActivationServer(Bucket(bucket_url), config, streams)

    def address(self) -> str:
        """Where trainers connect: one that listens on every interface is reached at its node's address."""
        return self._server.address.replace("//0.0.0.0:", f"//{ray.util.get_node_ip_address()}:")

    def expect(self, spec: StreamSpec, cursors: dict[str, int], stop: int) -> None:
        """Keep the window for trainers that will come together: their names, and the batch each begins with."""
        # The hindmost first, so that the window opens there. Were it to move back, the reader might wait by then for a shard further on,
        # and in rolling mode for ever: that is not made before the hindmost has gone on.
        for consumer, cursor in sorted(cursors.items(), key=lambda of_consumer: of_consumer[1]):
            self._server.expect(spec, consumer, cursor, stop)

    def expect_no_more(self, spec: StreamSpec, consumer: str) -> None:
        """A trainer has failed and will not come back: nobody waits for it any longer."""
        self._server.expect_no_more(spec, consumer)

    def stop(self) -> None:
        self._server.stop()


@dataclass(frozen=True)
class Whereabouts:
    """Finds the server, also after it died and Ray has started it at another address: call it for where it is now."""

    server: "ray.actor.ActorHandle"
    address: str  # where it was at first

    def __call__(self) -> str:
        try:
            return ray.get(self.server.address.remote(), timeout=ANSWER_SECONDS)
        except (ActorUnavailableError, GetTimeoutError):  # not back yet
            return self.address
        except ActorDiedError as error:
            raise ServerGone(f"the activation server at {self.address} died, and was started again as often as may be") from error
