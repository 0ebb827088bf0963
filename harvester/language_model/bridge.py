"""TransformerLens' bridge: how it is loaded, and what of it is replaced for speed."""

import contextlib
import gc
import logging
import warnings
from types import MethodType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from scopemill.harvester.config import ModelConfig
from scopemill.proto.errors import InputError, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def boot(model: ModelConfig, **options: Any):
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


def skip_norm_observations(bridge: Any) -> None:
    """Let each norm run as Hugging Face wrote it. The bridge computes every norm a second time, for its `hook_scale` and
    `hook_normalized`, which are no sites of ours: a quarter of a small model's forward pass."""
    for module in bridge.modules():
        if hasattr(module, "_hf_autograd_forward_with_hooks") and isinstance(module.original_component, torch.nn.Module):
            module._hf_autograd_forward_with_hooks = module.original_component.forward


def attend_as_hugging_face(bridge: Any) -> None:
    """Let attention run as Hugging Face wrote it, in one fused call where the architecture has that. The bridge computes it
    step by step, for scores and patterns that are no sites of ours; ``attn_z`` is the input of the last projection either way."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    attentions = [module for module in bridge.modules() if isinstance(module, AttentionBridge)]
    if not all(_projects_through_the_bridge(module) for module in attentions):
        return
    for attention in attentions:
        # Past the bridge's __setattr__, which would set it on the Hugging Face module that it wraps.
        attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)
    with quiet(), contextlib.suppress(ValueError):  # such as Gemma 2, whose scores are capped
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


@contextlib.contextmanager
def model_errors(model: ModelConfig):
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, huggingface_hub and TransformerLens raise many kinds for a wrong name
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"model {model.name!r} cannot be loaded: {reason or type(error).__name__}") from error


@contextlib.contextmanager
def quiet():
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
