"""SAE architectures, their training, and finished SAEs in and out."""

from scopemill.trainer.formats import load_sae
from scopemill.trainer.sae import Sae

__all__ = ["Sae", "load_sae"]
