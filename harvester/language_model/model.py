"""The language model: what it is (before its weights are loaded), its activations, and its loss under edits.

Legend of shapes: B sequences, T positions, V vocabulary, d width of a hook.
"""

import contextlib
import gc
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from scopemill.harvester.config import ModelConfig
from scopemill.proto.errors import InputError, ModelError
from scopemill.proto.hooks import SITES, Hook

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FINGERPRINT_SAMPLES = 64  # of 64 KiB, per weight file: reading all of a large model would take minutes
Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ModelCard:
    """What a model is, told from its configuration alone."""

    name: str  # short: the last part of its id or path
    fingerprint: str  # of configuration and weights: two models with the same one are the same
    layers: int
    context_length: int | None  # None: not stated
    widths: Mapping[str, int]  # d per site that the model has
    bos: int
    special: tuple[int, ...]  # BOS, EOS and PAD: their activations are no rows

    def hooks(self, layers: Iterable[int] | str, sites: Iterable[str] | str) -> list[Hook]:
        """The hooks of a sweep, layer by layer; ModelError for a layer or site that the model lacks."""
        layers = range(self.layers) if layers == "all" else layers
        sites = list(self.widths) if sites == "all" else sites
        for layer in layers:
            if layer >= self.layers:
                raise ModelError(f"harvest.layers: {self.name} has no layer {layer}: its layers are 0 to {self.layers - 1}")
        for site in sites:
            if site not in self.widths:
                raise ModelError(f"harvest.sites: {self.name} has no site {site!r}: it has {', '.join(self.widths)}")
        return [Hook(layer, site) for layer in sorted(layers) for site in sites]


def describe(model: ModelConfig) -> ModelCard:
    """Read a model's configuration and tokenizer; its weights are not touched. ModelError if that fails.

    Which sites there are, and how wide, is asked of TransformerLens itself, with a one-layer clone of the architecture.
    """
    with _quiet(), _model_errors(model):
        config = AutoConfig.from_pretrained(model.name, revision=model.revision)
        tokenizer = AutoTokenizer.from_pretrained(model.name, revision=model.revision)
        text = config.get_text_config()
        clone = _one_layer_clone(model, tokenizer)
    widths = {
        site: clone.cfg.n_heads * clone.cfg.d_head if site == "attn_z" else clone.cfg.d_model
        for site, suffix in SITES.items()
        if f"blocks.0.{suffix}" in clone.hook_dict
    }
    bos, special = _special_tokens(model, tokenizer)
    return ModelCard(
        name=Path(model.name).resolve().name if Path(model.name).is_dir() else model.name.rsplit("/", 1)[-1],
        fingerprint=_fingerprint(model, config),
        layers=text.num_hidden_layers,
        context_length=getattr(text, "max_position_embeddings", None),
        widths=widths,
        bos=bos,
        special=special,
    )


def _one_layer_clone(model: ModelConfig, tokenizer: PreTrainedTokenizerBase):
    """The model's architecture with one layer and without its weights; without memory too, where TransformerLens can."""
    options = {"load_weights": False, "hf_config_overrides": {"num_hidden_layers": 1}, "tokenizer": tokenizer}
    try:
        with torch.device("meta"):
            return _boot(model, **options)
    except Exception:  # a fused QKV projection, as GPT-2's, is split at boot, and that takes real tensors
        return _boot(model, **options)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    with _quiet(), _model_errors(model):
        return AutoTokenizer.from_pretrained(model.name, revision=model.revision)


class _AllCaptured(Exception):
    """Ends a forward pass: what comes after it, the head over the whole vocabulary above all, nobody wants."""


class LanguageModel:
    """A model under TransformerLens' bridge, for reading activations and for replacing them."""

    def __init__(self, model: ModelConfig):
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device)
        with _quiet(), _model_errors(model):
            self._bridge = _boot(model, dtype=DTYPES[model.dtype], device=self.device)
        self._bridge.eval().requires_grad_(False)
        _skip_norm_observations(self._bridge)
        _attend_as_hugging_face(self._bridge)

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


def _boot(model: ModelConfig, **options: Any):
    with _uncollected():
        from transformer_lens.model_bridge import TransformerBridge  # seconds to import: only who loads a model pays

    return TransformerBridge.boot_transformers(model.name, revision=model.revision, **options)


@contextlib.contextmanager
def _uncollected():
    """No search for garbage, as an import of thousands of modules makes none: it took a third of the seconds."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _skip_norm_observations(bridge: Any) -> None:
    """Let each norm run as Hugging Face wrote it. The bridge computes every norm a second time, for its `hook_scale` and
    `hook_normalized`, which are no sites of ours: a quarter of a small model's forward pass."""
    for module in bridge.modules():
        if hasattr(module, "_hf_autograd_forward_with_hooks") and isinstance(module.original_component, torch.nn.Module):
            module._hf_autograd_forward_with_hooks = module.original_component.forward


def _attend_as_hugging_face(bridge: Any) -> None:
    """Let attention run as Hugging Face wrote it, in one fused call where the architecture has that. The bridge computes it
    step by step, for scores and patterns that are no sites of ours; ``attn_z`` is the input of the last projection either way."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    attentions = [module for module in bridge.modules() if isinstance(module, AttentionBridge)]
    if not all(_projects_through_the_bridge(module) for module in attentions):
        return
    for attention in attentions:
        # Past the bridge's __setattr__, which would set it on the Hugging Face module that it wraps.
        attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)
    with _quiet(), contextlib.suppress(ValueError):  # such as Gemma 2, whose scores are capped
        bridge.original_model.set_attn_implementation("sdpa")


def _projects_through_the_bridge(attention: Any) -> bool:
    """Make sure that Hugging Face's attention calls the bridge's last projection, whose input is ``attn_z``; False if that cannot be.

    Where the bridge splits a fused projection, as GPT-2's, it keeps its own to itself.
    """
    last, own = getattr(attention, "o", None), attention.original_component
    if last is None:
        return False
    if getattr(own, last.name, None) is last.original_component:
        setattr(own, last.name, last)
    return any(module is last for module in own.modules())


def _special_tokens(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, tuple[int, ...]]:
    """BOS (models like GPT-2 use their one special token for it) and all special ids."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ModelError(f"model {model.name!r}: its tokenizer has neither a BOS nor an EOS token to open a sequence with")
    ids = {bos, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return bos, tuple(sorted(ids))


def _fingerprint(model: ModelConfig, config: Any) -> str:
    """The commit on the hub; for a folder a hash of its configuration and of samples from all over its weight files."""
    folder = Path(model.name)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or model.revision)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as weights:
            for i in range(FINGERPRINT_SAMPLES):
                weights.seek(size * i // FINGERPRINT_SAMPLES)
                digest.update(weights.read(2**16))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _model_errors(model: ModelConfig):
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, huggingface_hub and TransformerLens raise many kinds for a wrong name
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"model {model.name!r} cannot be loaded: {reason or type(error).__name__}") from error


@contextlib.contextmanager
def _quiet():
    """No progress bars and no notes of the libraries while a model loads."""
    verbosity, level = transformers_logging.get_verbosity(), logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        logging.disable(level)
