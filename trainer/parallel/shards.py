"""What of an SAE's latents a process holds, and what it has to learn of the others.

A wide SAE's latents are cut into parts, one process each: encoder rows, biases, thresholds, decoder rows, and what the optimiser keeps
of them. The decoder's bias, a skip and plain numbers are the same everywhere. Every part takes the same batch and decodes what it has;
the sum over all parts is what the SAE rebuilds, and from there on every part computes the same loss (arXiv 1909.08053 does so with
transformers). So a gradient stays in its part, but for what is the same everywhere: that is added up once, before the update.

Legend of shapes: B rows, F latents of this part.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from itertools import pairwise

import torch

from scopemill.trainer.parallel.process_group import Circle

EVERYWHERE = {"b_dec", "skip"}  # words in the names of tensors that every part has whole


class Word(IntEnum):
    """What the leader tells the others to do next, with a number."""

    BEGIN = 0  # at this step's checkpoint; at 0 there is none
    STEP = 1  # on this batch of the stream
    SAVE = 2  # hand over what a checkpoint needs
    END = 3


class Part:
    """All latents in one process: everything is known here, so nothing is done."""

    whole = leads = True

    def __init__(self, width: int):
        self.width = width  # latents of the SAE
        self.first, self.stop = 0, width  # those of them that are here

    @property
    def here(self) -> int:
        return self.stop - self.first

    # In a training step.

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all parts. Its gradient is each part's own: all compute the same loss of it."""
        return tensor

    def once(self, tensor: torch.Tensor) -> torch.Tensor:
        """What every part computes alike of parameters that are the same everywhere; it passes its gradient on in one part only."""
        return tensor

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """Of a parameter that is the same everywhere: what each part found, added up."""
        return parameter.grad

    def total(self, count: int) -> int:
        return count

    def everywhere(self, so: bool) -> bool:
        """Whether it is so in every part."""
        return so

    def among_largest(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """Of the k largest [B, at most k] of each row here, those that are among the k largest over all parts; -inf for the others."""
        return values

    def smallest_of_largest(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """The k-th largest of all, given the k largest [at most k] here."""
        return values.amin()

    def least(self, values: torch.Tensor) -> torch.Tensor | None:
        """The smallest of values [n], or None if there is none anywhere."""
        return values.amin() if len(values) else None

    # Between steps.

    def announce(self, word: Word, number: int = 0) -> None:
        """Tell the others what is next."""

    def same(self, tensor: torch.Tensor) -> torch.Tensor:
        """The leader's tensor, in place of what the others gave."""
        return tensor

    def shape(self, name: str, tensor: torch.Tensor) -> tuple[int, ...]:
        """That of a tensor of the whole SAE, given what is here of it."""
        return tuple(tensor.shape)

    def gathered(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of the whole SAE, on the leader's CPU; the other parts get nothing."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def deal(self, into: Mapping[str, torch.Tensor], tensors: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Fill what is here of tensors with what the leader has of the whole SAE; nobody else looks for it."""
        found = tensors()
        for name, tensor in into.items():
            tensor.copy_(found[name])


class Share(Part):
    """One of the parts of a circle of processes; all of them have to call the same methods in the same order."""

    whole = False

    def __init__(self, circle: Circle, width: int):
        super().__init__(width)
        self._circle, self.leads = circle, circle.rank == 0
        self._bounds = list(pairwise(i * width // circle.size for i in range(circle.size + 1)))
        self.first, self.stop = self._bounds[circle.rank]

    def sum(self, tensor):
        return _Sum.apply(tensor, self._circle)

    def once(self, tensor):
        return tensor if self.leads else tensor.detach()

    def gradient(self, parameter):
        total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
        self._circle.add_up(total)
        return total

    def total(self, count):
        number = torch.tensor(int(count), device=self._circle.device)
        self._circle.add_up(number)
        return int(number)

    def everywhere(self, so):
        return self.total(not so) == 0

    def among_largest(self, values, k):
        index = torch.cat(self._circle.of_all(_filled_up(values.detach(), k)), dim=1).topk(k, dim=1, sorted=False).indices
        mine = index - self._circle.rank * k
        kept = values.new_zeros(len(values), k + 1, dtype=torch.bool)  # the last column takes those of other parts
        kept.scatter_(1, mine.where((mine >= 0) & (mine < k), k), True)
        return values.where(kept[:, : values.shape[1]], -torch.inf)

    def smallest_of_largest(self, values, k):
        return torch.cat(self._circle.of_all(_filled_up(values, k))).topk(k, sorted=False).values.amin()

    def least(self, values):
        mine = values.amin() if len(values) else values.new_full((), torch.inf)
        smallest = torch.stack(self._circle.of_all(mine)).amin()
        return None if smallest.isinf() else smallest

    def announce(self, word, number=0):
        self._circle.leaders(torch.tensor([word, number], device=self._circle.device))

    def told(self) -> tuple[Word, int]:
        """What the leader announced."""
        word, number = self.same(torch.zeros(2, dtype=torch.int64, device=self._circle.device)).tolist()
        return Word(word), number

    def same(self, tensor):
        self._circle.leaders(tensor)
        return tensor

    def shape(self, name, tensor):
        return (self.width, *tensor.shape[1:]) if is_cut(name, tensor) else tuple(tensor.shape)

    def gathered(self, tensors):
        """One tensor after another, so that nobody but the leader ever holds more than its part."""
        found = {}
        for name, tensor in tensors.items():
            mine = tensor.detach().contiguous()
            if not is_cut(name, mine):
                found[name] = mine.cpu()
            elif self.leads:
                found[name] = torch.cat([mine.cpu(), *(self._received(rank, mine).cpu() for rank in range(1, len(self._bounds)))])
            else:
                self._circle.send(mine, to=0)
        return found if self.leads else {}

    @torch.no_grad()
    def deal(self, into, tensors):
        found = tensors() if self.leads else {}
        for name, mine in into.items():
            if not is_cut(name, mine):
                value = (found[name] if self.leads else mine).to(self._circle.device, copy=True)
                mine.copy_(self.same(value))
            elif self.leads:
                mine.copy_(found[name][: self.stop])
                for rank, (first, stop) in enumerate(self._bounds[1:], 1):
                    self._circle.send(found[name][first:stop].to(self._circle.device), to=rank)
            else:
                mine.copy_(self._received(0, mine))

    def _received(self, sender: int, like: torch.Tensor) -> torch.Tensor:
        """Rows of a tensor: on the leader those of another part, else those of this one."""
        first, stop = self._bounds[sender or self._circle.rank]
        rows = torch.empty(stop - first, *like.shape[1:], dtype=like.dtype, device=self._circle.device)
        self._circle.receive(rows, sender)
        return rows


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, circle):
        total = tensor.clone(memory_format=torch.contiguous_format)
        circle.add_up(total)
        return total

    @staticmethod
    def backward(ctx, d_total):
        return d_total, None


def is_cut(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor of an SAE's or a loop's state has a row for each latent."""
    return tensor.ndim > 0 and EVERYWHERE.isdisjoint(name.split("."))


def _filled_up(values: torch.Tensor, k: int) -> torch.Tensor:
    """With -inf, to k in the last dimension."""
    return torch.nn.functional.pad(values, (0, k - values.shape[-1]), value=-torch.inf).contiguous()
