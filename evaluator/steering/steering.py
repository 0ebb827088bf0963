"""Apply edits inside a forward pass, always as a difference.

So what the SAE does not explain stays as it is.

Legend of shapes: B sequences, T positions, n edited rows, F latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from scopemill.evaluator.evidence.neighbours import decoder_rows
from scopemill.evaluator.steering.edits import Edit
from scopemill.harvester.language_model import model as language_model
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae.base import Sae

# The order in which a block's hooks are reached.
_ORDER = ("resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")


@dataclass
class SteeredSae:
    """Hold one SAE with the edits of its latents, the amounts in raw activations."""

    sae: Sae
    inputs: tuple[Hook, ...]
    outputs: tuple[Hook, ...]
    edits: tuple[Edit, ...]

    @staticmethod
    def of(finished: FinishedSae, place: str, edits: Sequence[Edit]) -> "SteeredSae":
        """Check that the edits can act, and hold them; InputError says why they cannot."""
        sae = finished.sae
        inputs, outputs = finished.hooks(place)
        for edit in edits:
            for latent in (edit.latent, edit.when.latent if edit.when else 0):
                if latent >= sae.width:
                    raise InputError(f"{place} has no latent {latent}: its latents are 0 to {sae.width - 1}")
            if edit.needs_latents and max(map(_place, inputs)) > min(map(_place, outputs)):
                raise InputError(
                    f"{place}: {edit} cannot act: this SAE reads {inputs[-1].name} after it has written {outputs[0].name}, so within one "
                    "pass its latents are known too late; only add without a condition can act"
                )
            if edit.in_maxima:
                raise InputError(f"{place}: the amount of {edit} is not in raw activations yet")
        return SteeredSae(sae, inputs, outputs, tuple(edits))

    def acts(self, generated: bool) -> list[bool]:
        """Return which of the edits act on the prompt's tokens, or on generated ones."""
        return [edit.where in ("all", "generated" if generated else "prompt") for edit in self.edits]

    def encodes(self, acts: Sequence[bool]) -> bool:
        """Return whether the difference depends on what the SAE reads."""
        return any(edit.needs_latents for edit, active in zip(self.edits, acts, strict=True) if active)

    def difference(self, x: torch.Tensor | None, acts: Sequence[bool]) -> torch.Tensor:
        """Return decode(edited latents) - decode(latents) of rows, [n, d_out].

        ``x`` [n, d_in] is None where no edit needs the latents; then n is 1. ``acts``: which of the edits act on these rows.
        """
        deviation, before = None, None
        if x is not None:
            before = self.sae.encode(x)
            deviation = self.sae.normalized(x.to(self.sae.dtype))[2]
        change = self._rows.new_zeros(1 if before is None else len(before), len(self._latents))
        for edit, active in zip(self.edits, acts, strict=True):
            if active:
                _edit(edit, before, change[:, self._latents.index(edit.latent)])
        difference = change @ self._rows
        return difference if deviation is None else difference * deviation

    @cached_property
    def _latents(self) -> list[int]:
        return sorted({edit.latent for edit in self.edits})

    @cached_property
    def _rows(self) -> torch.Tensor:
        """The decoder rows of the edited latents: one token at a time, decoding all latents would cost as much as a layer."""
        return decoder_rows(self.sae)[self._latents]


_OPS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "add": lambda now, amount: now + amount,
    "scale": lambda now, amount: now * amount,
    "clamp": torch.full_like,
    "ablate": lambda now, amount: torch.zeros_like(now),
}


def _edit(edit: Edit, before: torch.Tensor | None, column: torch.Tensor) -> None:
    """Add an edit's change of its latent to ``column`` [n], in place; it sees the edits before it."""
    if before is None:
        column += edit.amount or 0.0
        return
    now = before[:, edit.latent] + column
    after = _OPS[edit.op](now, edit.amount or 0.0)
    if edit.when:
        after = torch.where(before[:, edit.when.latent] > edit.when.above, after, now)
    column += after - now


@dataclass
class Steering:
    """Hold all edits of a configuration, for any number of forward passes.

    With a ``control`` seed each edited row is moved by the same distance in a random direction instead: what any push of this
    size does.
    """

    saes: tuple[SteeredSae, ...]
    control: int | None = None
    _directions: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def edits(self, is_row: torch.Tensor, generated: bool = False) -> dict[Hook, language_model.Edit]:
        """Return the edits of one forward pass, hook by hook.

        ``is_row`` [B, T]: True at tokens that are not special; others are never edited. ``generated``: the tokens follow the prompt.
        """
        chains: dict[Hook, list[language_model.Edit]] = {}
        for number, steered in enumerate(self.saes):
            acts = steered.acts(generated)
            if any(acts):
                one = _Pass(steered, acts, is_row, self._controlled(number))
                for hook in dict.fromkeys(steered.inputs * one.encodes + steered.outputs):
                    chains.setdefault(hook, []).append(one.at(hook))
        return {hook: _chained(chain) for hook, chain in chains.items()}

    def _controlled(self, number: int):
        """Return a function of (output, difference [n, d]) that gives the difference to apply."""

        def control(output: int, difference: torch.Tensor) -> torch.Tensor:
            if self.control is None:
                return difference
            key = (number, output)
            if key not in self._directions:
                generator = torch.Generator().manual_seed(self.control + 1000 * number + output)
                self._directions[key] = torch.nn.functional.normalize(torch.randn(difference.shape[-1], generator=generator), dim=0)
            return difference.norm(dim=-1, keepdim=True) * self._directions[key].to(difference)

        return control


class _Pass:
    """Carry one SAE through one forward pass: read its inputs, then edit its outputs."""

    def __init__(self, steered: SteeredSae, acts: list[bool], is_row: torch.Tensor, control):
        self._steered, self._acts, self._is_row, self._control = steered, acts, is_row, control
        self.encodes = steered.encodes(acts)
        self._read: dict[Hook, torch.Tensor] = {}
        self._parts: tuple[torch.Tensor, ...] | None = None

    def at(self, hook: Hook) -> language_model.Edit:
        def edit(x: torch.Tensor) -> torch.Tensor:
            where = self._is_row.to(x.device)
            if self.encodes and hook in self._steered.inputs and hook not in self._read:
                self._read[hook] = x[where].float()
            if hook not in self._steered.outputs:
                return x
            output = self._steered.outputs.index(hook)
            out = x.clone()
            out[where] += self._control(output, self._difference()[output]).to(x.dtype)
            return out

        return edit

    def _difference(self) -> tuple[torch.Tensor, ...]:
        if self._parts is None:
            x = torch.cat([self._read[hook] for hook in self._steered.inputs], dim=1) if self.encodes else None
            self._parts = self._steered.difference(x, self._acts).split(self._steered.sae.shape.outputs, dim=1)
        return self._parts


def _chained(edits: Sequence[language_model.Edit]) -> language_model.Edit:
    def edit(x: torch.Tensor) -> torch.Tensor:
        for one in edits:
            x = one(x)
        return x

    return edit


def _place(hook: Hook) -> tuple[int, int]:
    return hook.layer, _ORDER.index(hook.site)
