"""What an SAE is connected to: the hooks that it reads and those that it rebuilds."""

from dataclasses import asdict, dataclass
from typing import Any

from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.recipe import LAYERED, PAIRED, Recipe


@dataclass(frozen=True)
class Port:
    """One hook's rows: ``d`` wide, stored as raw / ``scale``."""

    hook: str
    d: int
    scale: float

    def unit(self, recipe: Recipe) -> float:
        """What the SAE sees is raw / unit; a layer norm sees the same whatever the unit."""
        return {"scale": self.scale, "sqrt_d": self.scale / self.d**0.5}.get(recipe.normalization, 1.0)


@dataclass(frozen=True)
class Wiring:
    """``targets`` is empty for an SAE that rebuilds what it reads."""

    inputs: tuple[Port, ...]
    targets: tuple[Port, ...] = ()

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.targets or self.inputs

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks of the stream that feeds it, in the order of a batch's arrays."""
        return tuple(port.hook for port in self.inputs + self.targets)

    def input_units(self, recipe: Recipe) -> list[float]:
        return [port.unit(recipe) for port in self.inputs]

    def output_units(self, recipe: Recipe) -> list[float]:
        return [port.unit(recipe) for port in self.outputs]

    @property
    def shape(self) -> "Shape":
        return Shape(tuple(p.d for p in self.inputs), tuple(p.d for p in self.outputs), autoencoder=not self.targets)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Wiring":
        return Wiring(*(tuple(Port(**port) for port in data[side]) for side in ("inputs", "targets")))


@dataclass(frozen=True)
class Shape:
    """Widths of an SAE's inputs and outputs, hook by hook. Rows of several hooks lie side by side in one [B, d_in]."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    autoencoder: bool  # rebuilds what it reads

    @staticmethod
    def square(d: int) -> "Shape":
        return Shape((d,), (d,), autoencoder=True)

    @property
    def d_in(self) -> int:
        return sum(self.inputs)

    @property
    def d_out(self) -> int:
        return sum(self.outputs)


def connections(recipe: Recipe, hooks: tuple[Hook, ...], place: str = "train") -> list[tuple[tuple[Hook, ...], tuple[Hook, ...]]]:
    """Inputs and targets of every SAE that an architecture makes of hooks. InputError, naming the recipe's place, if it makes none.

    A transcoder joins two sites of a layer; a crosscoder spans the layers of a site; a cross-layer transcoder both.
    """
    by_site: dict[str, list[Hook]] = {}
    for hook in sorted(hooks):
        by_site.setdefault(hook.site, []).append(hook)
    if recipe.architecture in PAIRED:
        for field in ("input_site", "target_site"):
            if getattr(recipe, field) not in by_site:
                raise InputError(
                    f"{place}.{field}: a {recipe.architecture} needs the site {getattr(recipe, field)!r}, and there is only "
                    f"{', '.join(by_site)} of harvest.sites"
                )
        inputs, targets = tuple(by_site[recipe.input_site]), tuple(by_site[recipe.target_site])
        if recipe.architecture in LAYERED:
            return [(inputs, targets)]
        return [((one,), (other,)) for one, other in zip(inputs, targets, strict=True)]
    if recipe.architecture in LAYERED:
        single = next((site for site, of_site in by_site.items() if len(of_site) < 2), None)
        if single:
            raise InputError(
                f"{place}.architecture: a {recipe.architecture} spans layers, and there is one of {single} only: see harvest.layers"
            )
        return [(tuple(of_site), ()) for of_site in by_site.values()]
    return [((hook,), ()) for hook in hooks]


def label(inputs: tuple[Hook, ...], targets: tuple[Hook, ...]) -> str:
    """One folder name for what an SAE is connected to: the hook's own name for an SAE of one hook."""
    return "--".join(_side(side) for side in (inputs, targets) if side)


def _side(hooks: tuple[Hook, ...]) -> str:
    if len(hooks) == 1:
        return hooks[0].name
    return f"{hooks[0].site}.{'-'.join(str(hook.layer) for hook in hooks)}"
