"""The language model: what it is (before its weights are loaded), its activations, and its loss under edits.

Legend of shapes: B sequences, T positions, V vocabulary, d width of a hook.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.bridge import DTYPES, attend_as_hugging_face, boot, model_errors, quiet, skip_norm_observations
from scopemill.proto.hooks import Hook

Edit = Callable[[torch.Tensor], torch.Tensor]


class _AllCaptured(Exception):
    """Ends a forward pass: what comes after it, the head over the whole vocabulary above all, nobody wants."""


class LanguageModel:
    """A model under TransformerLens' bridge, for reading activations and for replacing them."""

    def __init__(self, model: ModelConfig):
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device)
        with quiet(), model_errors(model):
            self._bridge = boot(model, dtype=DTYPES[model.dtype], device=self.device)
        self._bridge.eval().requires_grad_(False)
        skip_norm_observations(self._bridge)
        attend_as_hugging_face(self._bridge)

    def capture(self, tokens: torch.Tensor, hooks: Iterable[Hook]) -> dict[str, torch.Tensor]:
        """Activations [B, T, d] of every hook for tokens [B, T], by the hooks' names."""
        captured: dict[str, torch.Tensor] = {}
        self.visit(tokens, hooks, captured.__setitem__)
        return captured

    def visit(self, tokens: torch.Tensor, hooks: Iterable[Hook], see: Callable[[str, torch.Tensor], None]) -> None:
        """Show ``see`` the activations [B, T, d] of every hook for tokens [B, T], each once, as soon as they are there.

        It is one pass, that ends where the last of them is reached. The heads of ``attn_z`` are concatenated. The tensors
        are on the model's device, in its precision; who does not keep them spares their memory.
        """
        left = {hook.name for hook in hooks}

        def show(name: str) -> Callable:
            def fn(x: torch.Tensor, hook: Any) -> None:
                see(name, x.flatten(start_dim=2))
                left.discard(name)
                if not left:
                    raise _AllCaptured

            return fn

        with torch.inference_mode(), contextlib.suppress(_AllCaptured):
            self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=[(name, show(name)) for name in left], return_type=None)

    def token_losses(self, tokens: torch.Tensor, edits: Mapping[Hook, Edit] | None = None) -> torch.Tensor:
        """Cross-entropy [B, T-1] in nats of each token from the second on, in float32.

        ``edits`` replace activations on the way: each gets [B, T, d] and gives the same shape back.
        """

        def replace(edit: Edit) -> Callable:
            def fn(x: torch.Tensor, hook: Any) -> torch.Tensor:
                return edit(x.flatten(start_dim=2)).to(x.dtype).reshape(x.shape)

            return fn

        tokens = tokens.to(self.device).long()
        with torch.inference_mode():
            logits = self._bridge.run_with_hooks(
                tokens, fwd_hooks=[(hook.name, replace(edit)) for hook, edit in (edits or {}).items()], return_type="logits"
            )
            return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
                len(tokens), -1
            )
