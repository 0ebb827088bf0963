"""Load TransformerLens' bridge, and replace the parts of it that are slow."""

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.installers import nothing_installed
from scopemill.proto.errors import InputError, ModelError


def boot(model: ModelConfig, **options: Any) -> Any:
    """Load a model under TransformerLens' bridge. ``options`` go to ``TransformerBridge.boot_transformers``."""
    with _garbage_collection_off():
        from transformer_lens.model_bridge import TransformerBridge  # takes seconds to import, so only when a model is loaded

    with nothing_installed() as refused:
        try:
            return TransformerBridge.boot_transformers(model.name, revision=model.revision, **options)
        except Exception as error:
            if not refused:
                raise
            raise ModelError(
                f"model {model.name!r} cannot be loaded: {_first_line(error)}. TransformerLens would have run `{refused[0]}`, and a run "
                "installs nothing: install what is missing yourself, in the same environment on every node"
            ) from error


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Switch garbage collection off.

    Importing thousands of modules makes no garbage, and looking for garbage took a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def use_hugging_face_norms(bridge: Any) -> None:
    """Run each norm as Hugging Face wrote it.

    The bridge computes every norm a second time for its ``hook_scale`` and ``hook_normalized``. Scopemill reads neither,
    and they cost a quarter of a small model's forward pass.
    """
    for module in bridge.modules():
        if hasattr(module, "_hf_autograd_forward_with_hooks") and isinstance(module.original_component, torch.nn.Module):
            module._hf_autograd_forward_with_hooks = module.original_component.forward


def use_hugging_face_attention(bridge: Any) -> None:
    """Run attention as Hugging Face wrote it.

    This is one fused call where the architecture has one. The bridge computes attention step by step for its hooks on
    scores and patterns, which Scopemill does not read. ``attn_z`` is the input of the output projection either way.
    """
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    attentions = [module for module in bridge.modules() if isinstance(module, AttentionBridge)]
    if not all(_projects_through_the_bridge(module) for module in attentions):
        return
    for attention in attentions:
        # The bridge's __setattr__ would set the attribute on the wrapped Hugging Face module.
        attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)
    with quiet_libraries(), contextlib.suppress(ValueError):  # Gemma 2, for one, caps its scores and has no fused call
        bridge.original_model.set_attn_implementation("sdpa")


def _projects_through_the_bridge(attention: Any) -> bool:
    """Make Hugging Face's attention call the bridge's output projection; False if impossible.

    ``attn_z`` is read at this projection. The call is impossible where the bridge splits a fused projection, such as
    GPT-2's, and keeps its own projection.
    """
    projection, original = getattr(attention, "o", None), attention.original_component
    if projection is None:
        return False
    if getattr(original, projection.name, None) is projection.original_component:
        setattr(original, projection.name, projection)
    return any(module is projection for module in original.modules())


@contextlib.contextmanager
def as_model_error(model: ModelConfig) -> Iterator[None]:
    """Turn every error of the block into a ModelError that names the model."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, huggingface_hub and TransformerLens raise many kinds for a wrong name
        raise ModelError(f"model {model.name!r} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' progress bars, warnings and notes while a model loads."""
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
