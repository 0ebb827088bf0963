"""Shard an SAE's latents over ranks, and compute what depends on all latents.

A wide SAE is sharded by latents: each rank holds some of the encoder rows, biases, thresholds and decoder rows, with their optimiser
state. The decoder's bias, a skip and plain numbers are replicated: every rank holds them. Every rank takes the same batch and decodes
its own latents; the sum over ranks is the reconstruction, from which every rank computes the same loss (arXiv 1909.08053 does so with
transformers). So a gradient stays on its rank; only gradients of replicated parameters are summed, once, before the update.

Legend of shapes: B rows, F latents of this rank.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from itertools import pairwise

import torch

from scopemill.trainer.parallel.process_group import ProcessGroup

REPLICATED = {"b_dec", "skip"}  # words in the names of replicated tensors


class Command(IntEnum):
    """Name what rank 0 tells the other ranks to do next, with a number."""

    START = 0  # from the checkpoint of this step; 0: there is none
    STEP = 1  # on this batch of the stream
    SAVE = 2  # send what a checkpoint needs
    END = 3


class LatentShard:
    """Hold all latents on one rank: every result is known locally.

    `DistributedShard` holds some of them.
    """

    whole = leads = True

    def __init__(self, width: int):
        self.width = width  # latents of the SAE, over all ranks
        self.start, self.stop = 0, width  # the latents of this rank

    @property
    def local_width(self) -> int:
        """Return the number of latents on this rank."""
        return self.stop - self.start

    # In a training step.

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks.

        Every rank computes the same loss from the sum, so its gradient needs no communication.
        """
        return tensor

    def replicated(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor computed from replicated parameters, with its gradient on rank 0 only.

        Every rank computes the same tensor.
        """
        return tensor

    def replicated_gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """Return the gradient of a replicated parameter, summed over ranks."""
        return parameter.grad

    def total(self, count: int) -> int:
        """Return the sum of a count over ranks."""
        return count

    def all_true(self, condition: bool) -> bool:
        """Return whether a condition holds on every rank."""
        return condition

    def global_top_k(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """Return this rank's k largest of each row [B, at most k].

        Values outside the k largest over ranks become -inf.
        """
        return values

    def kth_largest(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """Return the k-th largest value over ranks, given this rank's k largest [at most k]."""
        return values.amin()

    def smallest(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the smallest of all ranks' values [n], or None if no rank has any."""
        return values.amin() if len(values) else None

    # Between steps.

    def send_command(self, command: Command, number: int = 0) -> None:
        """Tell the other ranks what to do next."""

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return rank 0's tensor."""
        return tensor

    def full_shape(self, name: str, tensor: torch.Tensor) -> tuple[int, ...]:
        """Return the unsharded shape of a tensor."""
        return tuple(tensor.shape)

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return unsharded tensors on the CPU of rank 0; other ranks get none."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def scatter(self, into: Mapping[str, torch.Tensor], tensors: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Fill this rank's tensors from unsharded ones, which only rank 0 asks for."""
        found = tensors()
        for name, tensor in into.items():
            tensor.copy_(found[name])


class DistributedShard(LatentShard):
    """Hold one rank's share of the latents.

    All ranks call the same methods in the same order.
    """

    whole = False

    def __init__(self, group: ProcessGroup, width: int):
        super().__init__(width)
        self._group, self.leads = group, group.rank == 0
        self._bounds = list(pairwise(i * width // group.size for i in range(group.size + 1)))
        self.start, self.stop = self._bounds[group.rank]

    def all_reduce(self, tensor):
        return _AllReduce.apply(tensor, self._group)

    def replicated(self, tensor):
        return tensor if self.leads else tensor.detach()

    def replicated_gradient(self, parameter):
        total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
        self._group.all_reduce(total)
        return total

    def total(self, count):
        number = torch.tensor(int(count), device=self._group.device)
        self._group.all_reduce(number)
        return int(number)

    def all_true(self, condition):
        return self.total(not condition) == 0

    def global_top_k(self, values, k):
        index = torch.cat(self._group.all_gather(_padded(values.detach(), k)), dim=1).topk(k, dim=1, sorted=False).indices
        own = index - self._group.rank * k
        kept = values.new_zeros(len(values), k + 1, dtype=torch.bool)  # the last column takes those of other ranks
        kept.scatter_(1, own.where((own >= 0) & (own < k), k), True)
        return values.where(kept[:, : values.shape[1]], -torch.inf)

    def kth_largest(self, values, k):
        return torch.cat(self._group.all_gather(_padded(values, k))).topk(k, sorted=False).values.amin()

    def smallest(self, values):
        own = values.amin() if len(values) else values.new_full((), torch.inf)
        found = torch.stack(self._group.all_gather(own)).amin()
        return None if found.isinf() else found

    def send_command(self, command, number=0):
        self._group.broadcast(torch.tensor([command, number], device=self._group.device))

    def receive_command(self) -> tuple[Command, int]:
        """Return rank 0's next command and its number."""
        command, number = self.broadcast(torch.zeros(2, dtype=torch.int64, device=self._group.device)).tolist()
        return Command(command), number

    def broadcast(self, tensor):
        self._group.broadcast(tensor)
        return tensor

    def full_shape(self, name, tensor):
        return (self.width, *tensor.shape[1:]) if is_sharded(name, tensor) else tuple(tensor.shape)

    def gather(self, tensors):
        # One tensor after another, so that only rank 0 ever holds more than its shard.
        found = {}
        for name, tensor in tensors.items():
            own = tensor.detach().contiguous()
            if not is_sharded(name, own):
                found[name] = own.cpu()
            elif self.leads:
                found[name] = torch.cat([own.cpu(), *(self._received(rank, own).cpu() for rank in range(1, len(self._bounds)))])
            else:
                self._group.send(own, to=0)
        return found if self.leads else {}

    @torch.no_grad()
    def scatter(self, into, tensors):
        found = tensors() if self.leads else {}
        for name, own in into.items():
            if not is_sharded(name, own):
                value = (found[name] if self.leads else own).to(self._group.device, copy=True)
                own.copy_(self.broadcast(value))
            elif self.leads:
                own.copy_(found[name][: self.stop])
                for rank, (start, stop) in enumerate(self._bounds[1:], 1):
                    self._group.send(found[name][start:stop].to(self._group.device), to=rank)
            else:
                own.copy_(self._received(0, own))

    def _received(self, sender: int, like: torch.Tensor) -> torch.Tensor:
        """Return the rows that a rank sends: on rank 0 the sender's rows, on other ranks their own."""
        start, stop = self._bounds[sender or self._group.rank]
        rows = torch.empty(stop - start, *like.shape[1:], dtype=like.dtype, device=self._group.device)
        self._group.receive(rows, sender)
        return rows


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, group):
        total = tensor.clone(memory_format=torch.contiguous_format)
        group.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, d_total):
        return d_total, None


def is_sharded(name: str, tensor: torch.Tensor) -> bool:
    """Return whether a state tensor has one row per latent.

    The state is that of an SAE or a loop.
    """
    return tensor.ndim > 0 and REPLICATED.isdisjoint(name.split("."))


def _padded(values: torch.Tensor, k: int) -> torch.Tensor:
    """Pad the last dimension to k with -inf."""
    return torch.nn.functional.pad(values, (0, k - values.shape[-1]), value=-torch.inf).contiguous()
