"""The architectures by name: the one place that knows them all."""

from scopemill.trainer.jumprelu import JumpReLU
from scopemill.trainer.sae import Sae
from scopemill.trainer.standard import Standard

ARCHITECTURES: dict[str, type[Sae]] = {cls.architecture: cls for cls in (JumpReLU, Standard)}
