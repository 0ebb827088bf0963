"""Start training from a finished SAE."""

import torch

from scopemill.proto.errors import InputError
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Wiring
from scopemill.trainer.sae.activations.batchtopk import BatchTopK
from scopemill.trainer.sae.activations.gated import Gated
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae

EQUAL = 2e-3  # largest relative difference of numbers that count as equal: norms of rows in bfloat16, a threshold for each latent


@torch.no_grad()
def started_from(config: SaeConfig, wiring: Wiring, finished: Sae) -> Sae:
    """Return a finished SAE in training units, to go on with.

    It is the same function of raw activations. Raises InputError if it has another kind or shape than the configuration, or would be
    another function in training.
    """
    place, sae = config.initial_sae, initial_sae(config, wiring.shape, torch.zeros(wiring.shape.d_out))
    _check_sizes(place, finished, sae)
    # Folding with the inverse units undoes the folding of the finished SAE; only the pre-encoder bias is still to be restored.
    scaled = fold(finished, [1 / u for u in wiring.input_units(config)], [1 / u for u in wiring.output_units(config)])
    if finished.layer_norm != sae.layer_norm:
        used = "" if finished.layer_norm else "not "
        raise InputError(
            f"train.initial_sae: {place} was {used}trained with normalization: layer_norm, and train.normalization is "
            f"{config.normalization}: give both SAEs the same"
        )
    if config.architecture == "skip" and scaled.skip:
        scaled.skip = scaled.skip.of_rank(config.skip_rank)
    if config.latents == "batchtopk" and isinstance(scaled.activation, JumpReLU):
        scaled.activation = _batchtopk(place, scaled.activation, config)
    wanted, found = ({n: tuple(p.shape) for n, p in each.state_dict().items()} for each in (sae, scaled))
    if wanted != found:
        name = next(name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name))
        raise InputError(
            f"train.initial_sae: {place} is not a {config.architecture} of this shape, but a {finished.architecture} with "
            f"{finished.activation.name} latents: its tensor {name} has the shape {found.get(name, 'absent')}, and training needs "
            f"{wanted.get(name, 'no such tensor')}"
        )
    sae.load_state_dict(scaled.state_dict())
    if sae.keeps_unit_decoder(config):
        if config.counts_latents:
            _check_norms(place, sae)
        _normalize_decoder(sae)
    if sae.centred:
        _restore_pre_encoder_bias(sae)
    return sae


def _check_sizes(place: str | None, finished: Sae, sae: Sae) -> None:
    if finished.d_sae != sae.d_sae:
        raise InputError(
            f"train.initial_sae: {place} has {finished.d_sae} latents, and train.widths asks for {sae.d_sae}: give the width that it has"
        )
    if (finished.d_in, finished.d_out) != (sae.d_in, sae.d_out):
        raise InputError(
            f"train.initial_sae: {place} reads rows of width {finished.d_in} and gives rows of width {finished.d_out}, and the harvest's "
            f"hooks have {sae.d_in} and {sae.d_out}: name an SAE of the same sites"
        )


def _batchtopk(place: str | None, activation: JumpReLU, config: SaeConfig) -> BatchTopK:
    """Return the BatchTopK whose finished form is a JumpReLU with one threshold."""
    least, most = (float(bound) for bound in activation.threshold.aminmax())
    if most - least > EQUAL * abs(most):
        raise InputError(
            f"train.initial_sae: {place} has thresholds from {least:.3g} to {most:.3g}, and a finished batchtopk has one: it is a "
            "jumprelu, so train it with architecture: jumprelu"
        )
    made = BatchTopK(activation.width, config.k, activation.shard)
    made.threshold.fill_(most)
    return made


def _check_norms(place: str | None, sae: Sae) -> None:
    """Raise InputError if scaling decoder rows to unit norm would change which latents are the largest."""
    norms = sae.W_dec.norm(dim=1)
    least, most = (float(bound) for bound in norms[norms > 0].aminmax()) if bool((norms > 0).any()) else (1.0, 1.0)
    if most - least > EQUAL * most:
        raise InputError(
            f"train.initial_sae: {place} has decoder rows of norms from {least:.3g} to {most:.3g}, which training would scale to one norm, "
            f"so that other latents were the largest: a {sae.activation.name} starts only from decoder rows of equal norms"
        )


def _normalize_decoder(sae: Sae) -> None:
    """Scale decoder rows to unit norm, and the latents inversely, so that the reconstruction stays the same."""
    norms = sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
    sae.W_dec.div_(norms)
    sae.W_enc.mul_(norms)
    for name, p in sae.named_parameters():
        if name == "b_enc" or name.startswith("activation.") and name != "activation.r_mag":
            p.mul_(norms[:, 0])
    if isinstance(sae.activation, BatchTopK):
        sae.activation.threshold.mul_(norms.max())  # all norms are equal


def _restore_pre_encoder_bias(sae: Sae) -> None:
    """Add to the encoder's biases what subtracting ``b_dec`` from the input takes away."""
    shift = sae.W_enc @ sae.b_dec
    if isinstance(sae.activation, Gated):
        sae.activation.b_gate.add_(shift)
        sae.activation.b_mag.add_(sae.activation.r_mag.exp() * shift)
    elif sae.b_enc is not None:
        sae.b_enc.add_(shift)
