"""The activation server as a Ray actor: one per node with trainers."""

import ray

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.proto import metrics
from scopemill.proto.bucket import Bucket
from scopemill.proto.wire import StreamSpec


@ray.remote(num_cpus=0, max_concurrency=4)
class ServerActor:
    def __init__(self, bucket_url: str, config: ServerConfig, streams: int):
        self._server = ActivationServer(Bucket(bucket_url), config, streams)
        self._metrics_address = metrics.expose()

    def address(self) -> str:
        """Where trainers connect: one that listens on every interface is reached at its node's address."""
        return self._server.address.replace("//0.0.0.0:", f"//{ray.util.get_node_ip_address()}:")

    def metrics_address(self) -> str:
        return self._metrics_address

    def expect(self, spec: StreamSpec, consumer: str, cursor: int, stop: int) -> None:
        self._server.expect(spec, consumer, cursor, stop)

    def stop(self) -> None:
        self._server.stop()
