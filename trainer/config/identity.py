"""Collect what an SAE's id is computed from. Ids of existing SAEs never change."""

from collections.abc import Mapping
from typing import Any

from scopemill.trainer.config.recipe import Recipe, SaeConfig, sae_config
from scopemill.trainer.config.templates import load_template, templates

# Version 1, frozen: ids hash all of these fields, whether the SAE reads them or not. A field that an SAE does not read has the value
# that the template or the section of variants gives, or else this default; None in place of a default that was never used.
VERSION_1: dict[str, Any] = {
    "architecture": "jumprelu",
    "activation": None,
    "input_site": "mlp_in",
    "target_site": "mlp_out",
    "tokens": None,
    "batch_size": None,
    "accumulate": 1,
    "precision": "float32",
    "normalization": "scale",
    "learning_rate": None,
    "lr_warmup_steps": None,
    "lr_decay_fraction": None,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-08,
    "clip_gradient": None,
    "sparsity_warmup_steps": 0,
    "sparsity_warmup_fraction": 0.0,
    "penalty": "l0",
    "target_coefficient": 0.01,
    "frequency_limit": None,
    "tanh_scale": 4.0,
    "pre_activation_coefficient": 0.0,
    "initial_threshold": 0.001,
    "initial_l0": None,
    "initial_sae": None,
    "bandwidth": 0.001,
    "initial_decoder_bias": "zero",
    "prefixes": [0.0625, 0.125, 0.25, 0.5, 1.0],
    "skip_rank": 8,
    "auxk_coefficient": 0.03125,
    "auxk_latents": None,
    "resample_every": None,
    "resample_until": 0.5,
    "dead_after_tokens": None,
    "checkpoint_every": None,
    "log_every": None,
    "seed": 0,
    "width": None,
    "sparsity": None,
}


# Fields added later, with the value under which training is as it was in version 1: with this value a field does not enter.
LATER: dict[str, Any] = {"initial_scale": "as_published", "adam_beta1": 0.0}


def identity(sae: SaeConfig, filled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON mapping by which version 1 named an SAE.

    ``filled``: the recipe as the template and the sweep file fill it, with the fields that the SAE does not read. A field added after
    version 1 enters only where its value is not its default, so that a new option renames no SAE. A default that was another in version 1
    renames only SAEs that read the field.
    """
    read = sae.model_dump(mode="json")
    defaults = {name: field.get_default() for name, field in type(sae).model_fields.items()} | LATER
    chosen = {name: value for name, value in filled.items() if name in VERSION_1 and value != Recipe.model_fields[name].get_default()}
    unread = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    later = {name: value for name, value in read.items() if name not in VERSION_1 and getattr(sae, name) != defaults[name]}
    return VERSION_1 | unread | {name: value for name, value in read.items() if name in VERSION_1} | later


# Fields of version 1 that decide no weights: how often training saves and logs. Ids hold the template's values in their place.
PACE = ("checkpoint_every", "log_every")


def identities(sae: SaeConfig, filled: Mapping[str, Any], template: str) -> list[dict[str, Any]]:
    """Return the mapping whose digest is the SAE's id, then those of earlier versions.

    It has the values of ``template`` for `PACE`, whatever the SAE's own are. Earlier versions entered the SAE's own values.
    """
    same, own = identity(sae, filled), {name: getattr(sae, name) for name in PACE}
    known = [load_template(template).fields, own, *(one.fields for one in templates() if not one.own)]
    found = [same | {name: fields.get(name, own[name]) for name in PACE} for fields in known]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def recorded_config(fields: Mapping[str, Any]) -> SaeConfig:
    """Return the configuration that a record holds, whatever version wrote it."""
    return sae_config(LATER | dict(fields))
