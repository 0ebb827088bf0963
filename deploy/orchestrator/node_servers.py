"""Start one activation server on every node with trainers.

Servers that died for good are replaced.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.exceptions import ActorDiedError, RayError

from scopemill.activation_server.actor import ServerActor, Whereabouts
from scopemill.deploy.cluster.ray_cluster import on_node
from scopemill.deploy.orchestrator.actor_group import ActorGroup, as_scopemill_error, get
from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.proto.errors import ScopemillError
from scopemill.proto.wire import StreamSpec

if TYPE_CHECKING:
    from ray.actor import ActorClass


class NodeServers:
    """Hold the activation server of each node.

    ``streams`` is the most streams that one server reads at the same time.
    """

    def __init__(self, config: SweepConfig, streams: int, group: ActorGroup):
        self._config, self._streams, self._group = config, streams, group
        self._servers: dict[str, Any] = {}  # by node
        self._starting: dict[str, Any] = {}  # by node: started, and not yet in the group

    def start(self, nodes: Iterable[str]) -> None:
        """Start a server on each node that has none, and wait for none of them."""
        for node in nodes:
            if node not in self._servers and node not in self._starting:
                self._starting[node] = self._start(node)

    def expect(self, node: str, stream: StreamSpec, cursors: dict[str, int], stop: int) -> Whereabouts:
        """Announce trainers to the node's server, by consumer and cursor.

        Returns where the server is. A server that died for good is replaced once; ScopemillError if the new one dies as well.
        """
        for known in (self._servers.get(node) or self._starting.pop(node, None), None):
            server = known or self._start(node)
            if server is not self._servers.get(node):
                self._group.replace(self._servers.get(node), server)
                self._servers[node] = server
            try:
                ray.get(server.expect.remote(stream, cursors, stop))
            except ActorDiedError:
                continue
            except RayError as error:
                raise as_scopemill_error(error) from error
            return Whereabouts(server, get(server.address.remote()))
        raise ScopemillError(f"the activation server of node {node} died as soon as it was started")

    def expect_no_more(self, node: str, stream: StreamSpec, consumer: str) -> None:
        """Tell the node's server that a trainer will not come.

        So others do not wait for this trainer.
        """
        self._servers[node].expect_no_more.remote(stream, consumer)

    def _start(self, node: str) -> Any:
        actor = cast("ActorClass[Any]", ServerActor)  # mypy does not see what a class decorator returns
        return actor.options(**on_node(node)).remote(self._config.bucket, self._config.server, self._streams)
