"""Check by identity that resid_mid is the middle of the residual stream.

That is, pre + attention = mid, and mid + MLP = post. A model may put its norms elsewhere than its family does (OPT with
do_layer_norm_before=False), and the tensor at the usual place is then another one. Some models multiply what they add to the stream
(Granite), so each sum may have one factor.
"""

from collections.abc import Callable, Mapping

import torch

from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import Hook

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}  # of the stream's norm


def check_middle(capture: Callable[[list[Hook]], Mapping[str, torch.Tensor]], layer: int, there: Callable[[Hook], bool]) -> None:
    """Raise ModelError unless resid_mid of a layer lies between the attention and the MLP.

    ``capture`` returns activations [B, T, d] of some tokens; ``there`` tells which hooks the model has.
    """
    before, attention, middle, mlp, after = (Hook(layer, site) for site in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"))
    x = capture([hook for hook in (before, attention, middle, mlp, after) if there(hook)])
    for start, added, end in ((before, attention, middle), (middle, mlp, after)):
        if all(hook.name in x for hook in (start, added, end)) and not _is_sum(x[start.name], x[added.name], x[end.name]):
            raise ModelError(
                f"harvest.sites: resid_mid of layer {layer} is not the middle of the residual stream in this model: {end.site} is not "
                f"{start.site} plus {added.site}, because its norms or its parts lie in another order: leave resid_mid out"
            )


def _is_sum(start: torch.Tensor, added: torch.Tensor, end: torch.Tensor) -> bool:
    """Return True if the end is the start plus a multiple of what was added, but for rounding."""
    tolerance = TOLERANCE[end.dtype]
    change, part = (end.double() - start.double()).flatten(), added.double().flatten()
    factor = (change @ part) / (part @ part).clamp(min=1e-300)
    return bool((change - factor * part).norm() <= tolerance * end.double().norm())
