"""Look up the connected trainers, by connection and by name."""

from dataclasses import dataclass

from scopemill.activation_server.stream import Stream
from scopemill.proto.wire import Segment, StreamSpec


@dataclass(eq=False)
class Peer:
    """Describe a connected trainer: its identity on the socket, and the stream that it reads."""

    identity: bytes
    consumer: str
    stream: Stream
    segment: Segment  # the shared memory that the trainer was offered
    last_sent: float = 0.0


class Peers:
    """Hold at most one peer per identity, and per stream and consumer."""

    def __init__(self) -> None:
        self._by_identity: dict[bytes, Peer] = {}
        self._by_name: dict[tuple[StreamSpec, str], Peer] = {}

    def get(self, identity: bytes) -> Peer | None:
        """Return the peer of a connection."""
        return self._by_identity.get(identity)

    def named(self, spec: StreamSpec, consumer: str) -> Peer | None:
        """Return the peer of a consumer of a stream."""
        return self._by_name.get((spec, consumer))

    def all(self) -> list[Peer]:
        """Return every peer."""
        return list(self._by_identity.values())

    def add(self, peer: Peer) -> None:
        """Add a peer, whose identity and name must be free."""
        self._by_identity[peer.identity] = self._by_name[peer.stream.spec, peer.consumer] = peer

    def remove(self, peer: Peer) -> bool:
        """Remove a peer; return False if it was removed before."""
        if self._by_identity.get(peer.identity) is not peer:
            return False
        del self._by_identity[peer.identity], self._by_name[peer.stream.spec, peer.consumer]
        return True
