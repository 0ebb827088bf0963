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
        with quiet_libraries(), as_model_error(model):
            self._bridge = boot(model, dtype=TORCH_DTYPES[model.dtype], **placement(model))
        self.dtype = TORCH_DTYPES[model.dtype]
        self.device = torch.device(self._bridge.cfg.device)  # of a model on several devices: the embedding's
        self._bridge.eval().requires_grad_(False)
        self._bridge.original_model.config.get_text_config().use_cache = False  # nothing is generated, and some hybrids' caches refuse
        use_hugging_face_norms(self._bridge)
        use_hugging_face_attention(self._bridge)
        self._checked: set[Hook] = set()
        with as_model_error(model), torch.inference_mode():  # an architecture that TransformerLens loads and cannot run is told here
            self._bridge.run_with_hooks(torch.zeros((1, 4), dtype=torch.int64, device=self.device), fwd_hooks=[], return_type=None)

    @property
    def bridge(self) -> Any:
        """Return TransformerLens' bridge of the model, for its weights."""
        return self._bridge

    def capture(self, tokens: torch.Tensor, hooks: Iterable[Hook]) -> dict[str, torch.Tensor]:
        """Return the activations [B, T, d] of every hook for tokens [B, T], on ``device``."""
        captured: dict[str, torch.Tensor] = {}
        self.visit(tokens, hooks, lambda name, x: captured.__setitem__(name, x.to(self.device)))
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

        The pass ends at the last hook. The heads of ``attn_z`` are concatenated. Tensors are on the device of their layer, in
        the model's precision; a visitor that does not keep them saves their memory.
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

    def logits(
        self, tokens: torch.Tensor, edits: Mapping[Hook, Edit] | None = None, capture: Iterable[Hook] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of tokens [B, T], and the activations of some hooks by name.

        Logits are [B, T, V], activations [B, T, d].
        Each edit replaces the activations of its hook during the pass. Gradients flow through edits where autograd is on.
        """
        captured: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable:
            def hook_fn(x: torch.Tensor, hook: Any) -> None:
                captured[name] = x.flatten(start_dim=2).to(self.device)

            return hook_fn

        kept, edited = list(capture), edits or {}
        self._check([*kept, *edited])
        fwd_hooks = [(hook.name, keep(hook.name)) for hook in kept]
        fwd_hooks += [(hook.name, self._replaced(edit)) for hook, edit in edited.items()]
        logits = self._bridge.run_with_hooks(tokens.to(self.device).long(), fwd_hooks=fwd_hooks, return_type="logits")
        return logits.to(self.device), captured

    def _replaced(self, edit: Edit) -> Callable:
        """Return the bridge's hook that replaces activations by an edit's result."""

        def hook_fn(x: torch.Tensor, hook: Any) -> torch.Tensor:
            edited = edit(x.flatten(start_dim=2).to(self.device)).to(x)
            return edited.reshape(len(edited), *x.shape[1:])

        return hook_fn

    def next_logits(self, tokens: torch.Tensor, cache: Any, edits: Mapping[Hook, Edit] | None = None) -> tuple[torch.Tensor, Any]:
        """Return the logits [B, V] after new tokens [B, T], and a cache.

        The cache is for the next call; ``cache`` is None for the first tokens of a text.
        """
        fwd_hooks = [(hook.name, self._replaced(edit)) for hook, edit in (edits or {}).items()]
        options = {"past_key_values": cache} if cache is not None else {"use_cache": True}
        new = tokens.to(self.device).long()
        logits, cache = self._bridge.run_with_hooks(new, fwd_hooks=fwd_hooks, return_type="logits_and_cache", **options)
        return logits[:, -1].to(self.device), cache

    def spread_logits(self, tokens: torch.Tensor, edits: Mapping[Hook, Edit]) -> torch.Tensor:
        """Return the logits [n, V] after one text [T] whose edits return n sequences each.

        So what lies before the first edit runs once. Not every architecture takes it: most raise an error of their own then.
        """
        fwd_hooks = [(hook.name, self._replaced(edit)) for hook, edit in edits.items()]
        new = tokens[None].to(self.device).long()
        logits = self._bridge.run_with_hooks(new, fwd_hooks=fwd_hooks, return_type="logits", logits_to_keep=1)
        return logits[:, -1].to(self.device)

    def token_losses(self, tokens: torch.Tensor, edits: Mapping[Hook, Edit] | None = None) -> torch.Tensor:
        """Return the cross-entropy [B, T-1] of each next token, in nats and float32.

        Each edit replaces the activations of its hook during the pass. Edits and losses are on ``device``.
        """
        with torch.inference_mode():
            logits, _ = self.logits(tokens, edits)
            predictions, targets = logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].long().flatten().to(logits.device)
            return torch.nn.functional.cross_entropy(predictions, targets, reduction="none").view(len(tokens), -1).to(self.device)


def put_rows(where: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return activations [B, T, d] with some rows replaced.

    The rows [n, d] go where the mask ``where`` [B, T] is True.
    """
    out = x.clone()
    out[where] = rows.to(out.dtype)
    return out


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
