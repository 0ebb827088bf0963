"""Load the language model with its weights, for its activations and its loss under edits.

Legend of shapes: B sequences, T positions, d width of a hook.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.dtypes import TORCH_DTYPES
from scopemill.harvester.language_model.bridge import (
    as_model_error,
    boot,
    quiet_libraries,
    use_hugging_face_attention,
    use_hugging_face_norms,
)
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import Hook

Edit = Callable[[torch.Tensor], torch.Tensor]  # [B, T, d] -> [B, T, d]
Visitor = Callable[[str, torch.Tensor], None]  # a hook's name and its activations [B, T, d]


class _AllHooksReached(Exception):
    """End a forward pass early: later layers and the unembedding are not needed."""


class LanguageModel:
    """Run a model under TransformerLens' bridge to read its activations or replace them."""

    def __init__(self, model: ModelConfig):
        with quiet_libraries(), as_model_error(model):
            self._bridge = boot(model, dtype=TORCH_DTYPES[model.dtype], **placement(model))
        self.device = torch.device(self._bridge.cfg.device)  # of a model on several devices: the embedding's
        self._bridge.eval().requires_grad_(False)
        use_hugging_face_norms(self._bridge)
        use_hugging_face_attention(self._bridge)

    def capture(self, tokens: torch.Tensor, hooks: Iterable[Hook]) -> dict[str, torch.Tensor]:
        """Return the activations [B, T, d] of every hook for tokens [B, T], on ``device``."""
        captured: dict[str, torch.Tensor] = {}
        self.visit(tokens, hooks, lambda name, x: captured.__setitem__(name, x.to(self.device)))
        return captured

    def visit(self, tokens: torch.Tensor, hooks: Iterable[Hook], visitor: Visitor) -> None:
        """Run tokens [B, T] and call ``visitor`` when the pass reaches each hook.

        The pass ends at the last hook. The heads of ``attn_z`` are concatenated. Tensors are on the device of their layer, in
        the model's precision; a visitor that does not keep them saves their memory.
        """
        left = {hook.name for hook in hooks}

        def visit_at(name: str) -> Callable:
            def hook_fn(x: torch.Tensor, hook: Any) -> None:
                visitor(name, x.flatten(start_dim=2))
                left.discard(name)
                if not left:
                    raise _AllHooksReached

            return hook_fn

        with torch.inference_mode(), contextlib.suppress(_AllHooksReached):
            self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=[(name, visit_at(name)) for name in left], return_type=None)

    def token_losses(self, tokens: torch.Tensor, edits: Mapping[Hook, Edit] | None = None) -> torch.Tensor:
        """Return the cross-entropy [B, T-1] of each next token, in nats and float32.

        Each edit replaces the activations of its hook during the pass. Edits and losses are on ``device``.
        """

        def apply(edit: Edit) -> Callable:
            def hook_fn(x: torch.Tensor, hook: Any) -> torch.Tensor:
                return edit(x.flatten(start_dim=2).to(self.device)).to(x).reshape(x.shape)

            return hook_fn

        tokens = tokens.to(self.device).long()
        fwd_hooks = [(hook.name, apply(edit)) for hook, edit in (edits or {}).items()]
        with torch.inference_mode():
            logits = self._bridge.run_with_hooks(tokens, fwd_hooks=fwd_hooks, return_type="logits")
            predictions, targets = logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten().to(logits.device)
            return torch.nn.functional.cross_entropy(predictions, targets, reduction="none").view(len(tokens), -1).to(self.device)


def placement(model: ModelConfig) -> dict[str, Any]:
    """Return where a model goes, as options of `boot`.

    It goes to one device, or a part of its layers to each of several. Raises ModelError if there are fewer GPUs than the model is to
    be split over.
    """
    if model.devices == 1:
        return {"device": torch.device(("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device)}
    if (there := torch.cuda.device_count()) < model.devices:
        raise ModelError(
            f"model.devices: {model.name} is to be split over {model.devices} GPUs, and this process sees {there}: lower it, or raise the "
            "gpus of harvest and evaluation"
        )
    return {"n_devices": model.devices}
