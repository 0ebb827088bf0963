"""Find the fields of a recipe that its other fields leave without effect."""

from collections.abc import Mapping
from typing import Any


def switched_off(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that change nothing beside a recipe's other fields, each with the reason.

    ``recipe`` is filled but not checked: a value may be of any type. Which fields a kind of SAE reads at all, `Kind.reads` says.
    """
    resampled, off = recipe.get("resample_every") is not None, {}
    if not resampled:
        off["resample_until"] = "without resample_every no latent is resampled"
    if _number(recipe, "auxk_coefficient") == 0:
        off["auxk_latents"] = "auxk_coefficient is 0"
    if recipe.get("initial_l0") is not None and not resampled:
        off["initial_threshold"] = "initial_l0 chooses the thresholds"
    if recipe.get("initial_sae") is not None:
        off |= dict.fromkeys(("initial_scale", "initial_decoder_bias"), "the finished SAE of initial_sae has its own")
        if not resampled:
            off |= dict.fromkeys(("seed", "initial_threshold"), "training starts from the weights of initial_sae")
    return off | _shorter_warmup(recipe)


def _shorter_warmup(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Of two sparsity warm-ups the longer applies. A warm-up of 0 is a choice: it takes back what a template says."""
    tokens, size = _number(recipe, "tokens"), _number(recipe, "batch_size")
    steps, fraction = _number(recipe, "sparsity_warmup_steps"), _number(recipe, "sparsity_warmup_fraction")
    if min(tokens, size, steps, fraction) <= 0:
        return {}
    by_fraction = fraction * -(-tokens // size)
    if steps < by_fraction:
        longer = f"sparsity_warmup_fraction ({fraction:g}), unless it is 0, makes a longer warm-up, of {by_fraction:,.0f} steps"
        return {"sparsity_warmup_steps": longer}
    return {"sparsity_warmup_fraction": f"sparsity_warmup_steps ({steps:g}) is the longer warm-up"}


def _number(recipe: Mapping[str, Any], field: str) -> float:
    """Return a field's number; -1 where it has none, which is neither 0 nor positive."""
    value = recipe.get(field)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else -1
