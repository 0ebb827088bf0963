"""What training starts from: weights that are drawn, or a finished SAE."""

import torch

from scopemill.proto.errors import InputError
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Wiring
from scopemill.trainer.formats import load_sae
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.worker.assignment import Assignment


def new_sae(assignment: Assignment, part: LatentShard | None = None) -> Sae:
    """The SAE of an assignment before its first step, or a part of it; a finished SAE to start from is read by the leader alone."""
    config, wiring = assignment.config, assignment.wiring
    means = [
        torch.from_numpy(stats.mean_vector / port.unit(config)).float()
        for stats, port in zip(assignment.targets or assignment.inputs, wiring.outputs, strict=True)
    ]
    sae = initial_sae(config, wiring.shape, torch.cat(means), part)
    if config.initial_sae:
        sae.shard.scatter(sae.state_dict(), lambda: started_from(config, wiring).state_dict())
    return sae


@torch.no_grad()
def started_from(config: SaeConfig, wiring: Wiring) -> Sae:
    """The finished SAE that ``config.initial_sae`` names, in training's units. InputError if it is another kind or shape."""
    finished = load_sae(config.initial_sae)
    sae = initial_sae(config, wiring.shape, torch.zeros(wiring.shape.d_out))
    # What folding did is undone by folding with the inverse scales; a centred SAE then gets its pre-encoder bias back.
    scaled = fold(finished, [1 / u for u in wiring.input_units(config)], [1 / u for u in wiring.output_units(config)])
    if finished.layer_norm != sae.layer_norm:
        used = "" if finished.layer_norm else "not "
        raise InputError(
            f"train.initial_sae: {config.initial_sae} was {used}trained with normalization: layer_norm; train.normalization differs"
        )
    if config.architecture == "skip" and scaled.skip:
        scaled.skip = scaled.skip.of_rank(config.skip_rank)
    mine, its = ({n: tuple(p.shape) for n, p in each.state_dict().items()} for each in (sae, scaled))
    if mine != its:
        differing = next(name for name in sorted(mine.keys() | its.keys()) if mine.get(name) != its.get(name))
        raise InputError(
            f"train.initial_sae: {config.initial_sae} is not a {config.architecture} of this shape: its {differing} is "
            f"{its.get(differing, 'absent')}, and {mine.get(differing, 'nothing')} is wanted"
        )
    sae.load_state_dict(scaled.state_dict())
    if sae.keeps_unit_decoder(config):
        norms = sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
        sae.W_dec /= norms
        sae.W_enc *= norms
        for name, p in sae.named_parameters():
            if name == "b_enc" or name.startswith("activation.") and name != "activation.r_mag":
                p *= norms[:, 0]
    if sae.centred:
        shift = sae.W_enc @ sae.b_dec
        if sae.b_enc is not None:
            sae.b_enc += shift
        else:
            sae.activation.b_gate += shift
            sae.activation.b_mag += sae.activation.r_mag.exp() * shift
    return sae
