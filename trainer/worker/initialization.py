"""Make the SAE that training starts from: random weights, or a finished SAE."""

import torch

from scopemill.proto.errors import InputError
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Wiring
from scopemill.trainer.formats import load_sae
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.gated import Gated
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.worker.assignment import Assignment


def new_sae(assignment: Assignment, shard: LatentShard | None = None) -> Sae:
    """Return an assignment's SAE before its first step, or this rank's shard.

    Only rank 0 reads a finished SAE to start from.
    """
    config, wiring = assignment.config, assignment.wiring
    means = [
        torch.from_numpy(stats.mean_vector / port.unit(config)).float()
        for stats, port in zip(assignment.targets or assignment.inputs, wiring.outputs, strict=True)
    ]
    sae = initial_sae(config, wiring.shape, torch.cat(means), shard)
    if config.initial_sae:
        sae.shard.scatter(sae.state_dict(), lambda: started_from(config, wiring).state_dict())
    return sae


@torch.no_grad()
def started_from(config: SaeConfig, wiring: Wiring) -> Sae:
    """Return the finished SAE ``config.initial_sae`` in training units.

    Raises InputError if the finished SAE has another kind or shape than the configuration.
    """
    place = config.initial_sae
    assert place is not None, "only called where there is an SAE to start from"
    finished, sae = load_sae(place), initial_sae(config, wiring.shape, torch.zeros(wiring.shape.d_out))
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
    wanted, found = ({n: tuple(p.shape) for n, p in each.state_dict().items()} for each in (sae, scaled))
    if wanted != found:
        name = next(name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name))
        raise InputError(
            f"train.initial_sae: {place} is not a {config.architecture} of this shape: its tensor {name} has the shape "
            f"{found.get(name, 'absent')}, and training needs {wanted.get(name, 'no such tensor')}"
        )
    sae.load_state_dict(scaled.state_dict())
    if sae.keeps_unit_decoder(config):
        _normalize_decoder(sae)
    if sae.centred:
        _restore_pre_encoder_bias(sae)
    return sae


def _normalize_decoder(sae: Sae) -> None:
    """Scale decoder rows to unit norm, and the latents inversely, so that the reconstruction stays the same."""
    norms = sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
    sae.W_dec.div_(norms)
    sae.W_enc.mul_(norms)
    for name, p in sae.named_parameters():
        if name == "b_enc" or name.startswith("activation.") and name != "activation.r_mag":
            p.mul_(norms[:, 0])


def _restore_pre_encoder_bias(sae: Sae) -> None:
    """Add to the encoder's biases what subtracting ``b_dec`` from the input takes away."""
    shift = sae.W_enc @ sae.b_dec
    if isinstance(sae.activation, Gated):
        sae.activation.b_gate.add_(shift)
        sae.activation.b_mag.add_(sae.activation.r_mag.exp() * shift)
    elif sae.b_enc is not None:
        sae.b_enc.add_(shift)
