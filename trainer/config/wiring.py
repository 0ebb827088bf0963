"""Describe which hooks an SAE reads and reconstructs."""

from dataclasses import asdict, dataclass
from typing import Any

from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.recipe import LAYERED, PAIRED, Recipe


@dataclass(frozen=True)
class Port:
    """Describe one hook's rows: ``d`` wide, stored as raw / ``scale``."""

    hook: str
    d: int
    scale: float

    def unit(self, recipe: Recipe) -> float:
        """Return the unit: the SAE sees raw / unit.

        With a layer norm the unit makes no difference.
        """
        return {"scale": self.scale, "sqrt_d": self.scale / self.d**0.5}.get(recipe.normalization, 1.0)


@dataclass(frozen=True)
class Wiring:
    """Hold the hooks of one SAE.

    ``targets`` is empty for an SAE that reconstructs its input.
    """

    inputs: tuple[Port, ...]
    targets: tuple[Port, ...] = ()

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Return the hooks to reconstruct."""
        return self.targets or self.inputs

    @property
    def hooks(self) -> tuple[str, ...]:
        """Return the hooks of the SAE's stream, in the order of a batch's arrays."""
        return tuple(port.hook for port in self.inputs + self.targets)

    def input_units(self, recipe: Recipe) -> list[float]:
        """Return the unit of each input."""
        return [port.unit(recipe) for port in self.inputs]

    def output_units(self, recipe: Recipe) -> list[float]:
        """Return the unit of each output."""
        return [port.unit(recipe) for port in self.outputs]

    @property
    def shape(self) -> "Shape":
        """Return the widths of the hooks."""
        return Shape(tuple(p.d for p in self.inputs), tuple(p.d for p in self.outputs), autoencoder=not self.targets)

    def to_json(self) -> dict[str, Any]:
        """Return the wiring as a JSON mapping."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Wiring":
        """Return the wiring in a JSON mapping of `to_json`."""
        return Wiring(*(tuple(Port(**port) for port in data[side]) for side in ("inputs", "targets")))


@dataclass(frozen=True)
class Shape:
    """Hold the widths of an SAE's inputs and outputs, per hook.

    Rows of several hooks are concatenated to [B, d_in].
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    autoencoder: bool  # reconstructs its input

    @staticmethod
    def square(d: int) -> "Shape":
        """Return the shape of an SAE that reconstructs one hook."""
        return Shape((d,), (d,), autoencoder=True)

    @property
    def d_in(self) -> int:
        """Return the sum of the input widths."""
        return sum(self.inputs)

    @property
    def d_out(self) -> int:
        """Return the sum of the output widths."""
        return sum(self.outputs)


def connections(recipe: Recipe, hooks: tuple[Hook, ...], place: str = "train") -> list[tuple[tuple[Hook, ...], tuple[Hook, ...]]]:
    """Return the inputs and targets of every SAE that a recipe makes of hooks.

    A transcoder joins two sites of a layer; a crosscoder spans the layers of a site; a cross-layer transcoder does both. Raises
    InputError, naming the recipe's ``place``, if the hooks make no SAE.
    """
    by_site: dict[str, list[Hook]] = {}
    for hook in sorted(hooks):
        by_site.setdefault(hook.site, []).append(hook)
    if recipe.architecture in PAIRED:
        for field in ("input_site", "target_site"):
            if getattr(recipe, field) not in by_site:
                raise InputError(
                    f"{place}.{field}: a {recipe.architecture} needs the site {getattr(recipe, field)!r}, and harvest.sites gives only "
                    f"{', '.join(by_site)}: add the site to harvest.sites"
                )
        inputs, targets = tuple(by_site[recipe.input_site]), tuple(by_site[recipe.target_site])
        if recipe.architecture in LAYERED:
            return [(inputs, targets)]
        return [((one,), (other,)) for one, other in zip(inputs, targets, strict=True)]
    if recipe.architecture in LAYERED:
        single = next((site for site, of_site in by_site.items() if len(of_site) < 2), None)
        if single:
            raise InputError(
                f"{place}.architecture: a {recipe.architecture} spans layers, and {single} is harvested at one layer only: add layers to "
                "harvest.layers"
            )
        return [(tuple(of_site), ()) for of_site in by_site.values()]
    return [((hook,), ()) for hook in hooks]


def label(inputs: tuple[Hook, ...], targets: tuple[Hook, ...]) -> str:
    """Return the folder name of an SAE's hooks; one hook gives its own name."""
    return "--".join(_side(side) for side in (inputs, targets) if side)


def _side(hooks: tuple[Hook, ...]) -> str:
    if len(hooks) == 1:
        return hooks[0].name
    return f"{hooks[0].site}.{'-'.join(str(hook.layer) for hook in hooks)}"
