"""Connect the processes that train one SAE, and run collective operations on their tensors.

Sockets are torch.distributed's. The group is not torch's global one: a process joins one group after another, and tests have
several groups at once.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, ReduceOp, TCPStore

from scopemill.proto.errors import RankLost

JOIN_TIMEOUT = timedelta(seconds=120)  # for all ranks to join
# Rank 0 may wait long for data, so a tensor may be long in coming. A dead process is noticed by its closed connection, a dead node
# by Ray.
OPERATION_TIMEOUT = timedelta(days=7)


class ProcessGroup:
    """Run collective operations among ``size`` processes.

    All ranks call the same methods in the same order. RankLost if one of them is gone.
    """

    def __init__(self, store: TCPStore, host: str, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        make = _nccl if device.type == "cuda" else _gloo
        self._store: TCPStore | None = store
        self._group: Any = _raising_rank_lost(lambda: make(store, host, rank, size))

    def __enter__(self) -> "ProcessGroup":
        """Return the group."""
        return self

    def __exit__(self, *_) -> None:
        """Leave the group: ranks that wait for this one raise RankLost."""
        self._group.abort()
        self._group = self._store = None

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all ranks, in place.

        The order is fixed, so every rank gets the same bits in every run.
        """
        self._wait(lambda group: group.allreduce(tensor, ReduceOp.SUM))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor with rank 0's."""
        self._wait(lambda group: group.broadcast(tensor, 0))

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, by rank; all have one shape."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        self._wait(lambda group: group.allgather(gathered, tensor))
        return gathered

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send a tensor to a rank."""
        self._wait(lambda group: group.send([tensor], to, 0))

    def receive(self, tensor: torch.Tensor, sender: int) -> None:
        """Overwrite a tensor with the one that a rank sends."""
        self._wait(lambda group: group.recv([tensor], sender, 0))

    def _wait(self, begin: Callable[[Any], Any]) -> None:
        _raising_rank_lost(lambda: begin(self._group).wait())


class Rendezvous:
    """Listen at a free port of ``host`` for the ranks of one process group.

    Rank 0 opens it.
    """

    def __init__(self, host: str):
        listening = socket.create_server((host, 0))
        port = listening.getsockname()[1]
        self.address = f"{host}:{port}"
        self._store = TCPStore(host, port, None, True, JOIN_TIMEOUT, wait_for_workers=False, master_listen_fd=listening.detach())

    def process_group(self, size: int, device: torch.device) -> ProcessGroup:
        """Return the process group, as rank 0, once all ranks have joined."""
        return ProcessGroup(self._store, self.address.rpartition(":")[0], 0, size, device)


def join(address: str, host: str, rank: int, size: int, device: torch.device) -> ProcessGroup:
    """Join the process group whose rendezvous is at ``address``, from ``host``."""
    place, _, port = address.rpartition(":")
    store = _raising_rank_lost(lambda: TCPStore(place, int(port), None, False, JOIN_TIMEOUT, wait_for_workers=False))
    return ProcessGroup(store, host, rank, size, device)


def _gloo(store: TCPStore, host: str, rank: int, size: int) -> ProcessGroupGloo:
    options, interfaces = ProcessGroupGloo._Options(), os.environ.get("GLOO_SOCKET_IFNAME")  # type: ignore[attr-defined]
    options._timeout = OPERATION_TIMEOUT
    create = ProcessGroupGloo.create_device
    options._devices = [create(interface=one) for one in interfaces.split(",")] if interfaces else [create(hostname=host)]
    return ProcessGroupGloo(store, rank, size, options)


def _nccl(store: TCPStore, host: str, rank: int, size: int) -> Any:
    from torch.distributed import ProcessGroupNCCL  # torch for the CPU has none

    options = ProcessGroupNCCL.Options()
    options._timeout = OPERATION_TIMEOUT
    return ProcessGroupNCCL(store, rank, size, options)


def _raising_rank_lost(work: Callable[[], Any]) -> Any:
    """Return the work's result; raise RankLost where torch says that a connection broke or was never made."""
    try:
        return work()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankLost(f"a process that holds other latents of this SAE is gone or never joined: {reason}") from error
