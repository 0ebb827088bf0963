"""Name the places in the language model where activations are read."""

import re
from dataclasses import dataclass

from scopemill.proto.errors import InputError

# TransformerLens' names. `mlp_in` is the MLP's real input (after the norm's gain); `mlp_out` and `attn_out` are the tensors
# added to the residual stream (after a post-norm, where the model has one).
SITES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_z": "attn.hook_z",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
}
_SITE_OF = {suffix: site for site, suffix in SITES.items()}
_NAME = re.compile(r"blocks\.(0|[1-9][0-9]*)\.(.+)")  # one spelling for each layer


@dataclass(frozen=True, order=True)
class Hook:
    """Identify a hook; ``Hook(12, "resid_post").name`` is ``blocks.12.hook_resid_post``."""

    layer: int
    site: str

    @property
    def name(self) -> str:
        """Return TransformerLens' name of the hook."""
        return f"blocks.{self.layer}.{SITES[self.site]}"

    @staticmethod
    def parse(name: str) -> "Hook":
        """Return the hook of a TransformerLens name; raise InputError for any other text."""
        match = _NAME.fullmatch(name)
        if not match or match[2] not in _SITE_OF:
            raise InputError(f"hook {name!r} is not known: write a hook as, for example, 'blocks.12.hook_resid_post'")
        return Hook(int(match[1]), _SITE_OF[match[2]])
