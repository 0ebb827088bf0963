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
from scopemill.harvester.language_model.residual import check_middle
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import Hook

Edit = Callable[[torch.Tensor], torch.Tensor]  # [B, T, d] -> [B, T, d]
Visitor = Callable[[str, torch.Tensor], None]  # a hook's name and its activations [B, T, d]


class _AllHooksReached(Exception):
    """End a forward pass early: later layers and the unembedding are not needed."""


class LanguageModel:
    """Run a model under TransformerLens' bridge to read its activations or replace them."""

    def __init__(self, model: ModelConfig):
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device)
        with quiet_libraries(), as_model_error(model):
            self._bridge = boot(model, dtype=TORCH_DTYPES[model.dtype], device=self.device)
        self._bridge.eval().requires_grad_(False)
        self._bridge.original_model.config.get_text_config().use_cache = False  # nothing is generated, and some hybrids' caches refuse
        use_hugging_face_norms(self._bridge)
        use_hugging_face_attention(self._bridge)
        self._checked: set[Hook] = set()
        with as_model_error(model), torch.inference_mode():  # an architecture that TransformerLens loads and cannot run is told here
            self._bridge.run_with_hooks(torch.zeros((1, 4), dtype=torch.int64, device=self.device), fwd_hooks=[], return_type=None)

    def capture(self, tokens: torch.Tensor, hooks: Iterable[Hook]) -> dict[str, torch.Tensor]:
        """Return the activations [B, T, d] of every hook for tokens [B, T]."""
        captured: dict[str, torch.Tensor] = {}
        self.visit(tokens, hooks, captured.__setitem__)
        return captured

    def _check(self, hooks: Iterable[Hook]) -> None:
        """Raise ModelError if a hook at resid_mid is not what it is called; each is looked at once."""
        for hook in [hook for hook in hooks if hook.site == "resid_mid" and hook not in self._checked]:
            self._checked.add(hook)
            check_middle(self._sample, hook.layer, lambda one: one.name in self._bridge.hook_dict)

    def _sample(self, hooks: list[Hook]) -> dict[str, torch.Tensor]:
        """Return the activations of some random tokens."""
        tokens = torch.randint(self._bridge.cfg.d_vocab, (2, 16), generator=torch.Generator().manual_seed(0))
        return self.capture(tokens, hooks)

    def visit(self, tokens: torch.Tensor, hooks: Iterable[Hook], visitor: Visitor) -> None:
        """Run tokens [B, T] and call ``visitor`` when the pass reaches each hook.

        The pass ends at the last hook. The heads of ``attn_z`` are concatenated. Tensors are on the model's device, in the
        model's precision; a visitor that does not keep them saves their memory.
        """
        wanted = list(hooks)
        self._check(wanted)
        left = {hook.name for hook in wanted}

        def visit_at(name: str) -> Callable:
            def hook_fn(x: torch.Tensor, hook: Any) -> None:
                if not isinstance(x, torch.Tensor):
                    raise ModelError(f"harvest.sites: {name} gives a {type(x).__name__} in this architecture, and no tensor: leave it out")
                visitor(name, x.flatten(start_dim=2))
                left.discard(name)
                if not left:
                    raise _AllHooksReached

            return hook_fn

        with torch.inference_mode(), contextlib.suppress(_AllHooksReached):
            self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=[(name, visit_at(name)) for name in left], return_type=None)

    def token_losses(self, tokens: torch.Tensor, edits: Mapping[Hook, Edit] | None = None) -> torch.Tensor:
        """Return the cross-entropy [B, T-1] of each next token, in nats and float32.

        Each edit replaces the activations of its hook during the pass.
        """

        def apply(edit: Edit) -> Callable:
            def hook_fn(x: torch.Tensor, hook: Any) -> torch.Tensor:
                return edit(x.flatten(start_dim=2)).to(x.dtype).reshape(x.shape)

            return hook_fn

        self._check(edits or {})
        tokens = tokens.to(self.device).long()
        fwd_hooks = [(hook.name, apply(edit)) for hook, edit in (edits or {}).items()]
        with torch.inference_mode():
            logits = self._bridge.run_with_hooks(tokens, fwd_hooks=fwd_hooks, return_type="logits")
            predictions, targets = logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()
            return torch.nn.functional.cross_entropy(predictions, targets, reduction="none").view(len(tokens), -1)
