"""Train one SAE on activations in memory.

The loop, templates and kernels are a sweep's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import ValidationError

from scopemill.proto.errors import InputError
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import LAYERED, PAIRED, Recipe, SaeConfig
from scopemill.trainer.config.wiring import Port, Wiring
from scopemill.trainer.formats import read_start
from scopemill.trainer.rows import Array, Layout, RowSource, Stats, row_source
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.sae.start import started_from
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.training.monitors import Monitor, Monitors, named_monitor

DEFAULT_K = 32
CALIBRATION_ROWS = 65_536  # of an iterator: its first rows give scale and mean
_PARAMETERS = {"widths": "width", "sparsities": "sparsity"}  # names of the sweep file, and of the parameters


def train_sae(
    x: Array | tuple[Array, Array] | Iterable[Any],
    architecture: str = "topk",
    width: int = 4096,
    sparsity: float | None = None,
    *,
    y: Array | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    template: str = "quick",
    seed: int = 0,
    device: torch.device | str | None = None,
    monitors: Sequence[Monitor | str] = (),
    model: str | None = None,
    hook: str | Sequence[str] = (),
    hook_out: str | Sequence[str] = (),
    **overrides: Any,
) -> Sae:
    """Train an SAE on activations and return it, ready for raw activations.

    ``x`` is a tensor [rows, d], shuffled anew in each epoch, or an iterator of such tensors, read in its own order.
    Transcoders need ``y`` as well, or pairs (x, y). Architectures that span layers take [rows, layers, d].

    ``sparsity`` is k for topk, batchtopk and matryoshka (absent: 32), for others the penalty's coefficient. ``steps``,
    ``tokens`` or ``epochs`` says how long to train; absent: the template's number of tokens. ``overrides`` are fields of
    a sweep's ``train`` section, see docs/sweep-file.md. ``monitors`` receive each row of the history: "tensorboard",
    "wandb", or objects such as ``Jsonl(place)``. ``model``, ``hook`` and ``hook_out`` describe the SAE and change nothing
    else. InputError if the rows or a field are wrong; NotFinite if training diverges.
    """
    watching = Monitors(named_monitor(one) if isinstance(one, str) else one for one in monitors)
    source = row_source(x, y, Layout(architecture, architecture in PAIRED, architecture in LAYERED))
    fields = {"architecture": architecture, "template": template, "widths": [width], **overrides}
    only_order = overrides.get("initial_sae") is not None and overrides.get("resample_every") is None  # weights that are there need no seed
    fields |= {} if only_order else {"seed": seed}
    config = _config(fields, sparsity, source.rows, batch_size, _length(steps=steps, tokens=tokens, epochs=epochs))
    config = config.model_copy(update={"seed": seed})
    stats = source.calibrate(min(CALIBRATION_ROWS, config.steps * config.batch_size))
    hooks = _names(hook), _names(hook_out)
    wiring = Wiring(*(_ports(side, names) for side, names in zip(stats, hooks, strict=False)))
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        loop = _begin(config, wiring, stats[-1], where, watching)
        _train(loop, source, wiring, where)
    return _finish(loop, wiring, model, hooks[0], hooks[1] if wiring.targets else ())


def _length(**given: float | None) -> tuple[str, float] | None:
    """Return the one way in which the length of training is given. InputError if there are several."""
    said = [(name, value) for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise InputError(f"{' and '.join(name for name, _ in said)} both say how long to train; give one of steps, tokens and epochs.")
    for name, value in said:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf or (name != "epochs" and value % 1):
            raise InputError(f"{name} is {value!r}; give a positive {'number' if name == 'epochs' else 'whole number'}.")
    return said[0] if said else None


def _config(
    fields: dict[str, Any], sparsity: float | None, rows: int | None, batch_size: int | None, length: tuple[str, float] | None
) -> SaeConfig:
    """Return the configuration of the one SAE that the fields describe. InputError with a sentence for each wrong field."""
    unknown = sorted(fields.keys() - Recipe.model_fields.keys() - {"template", "widths"})
    if unknown:
        raise InputError(f"{unknown[0]} is not a field of a recipe; docs/sweep-file.md lists the fields of the train section.")
    fields = fields | {"sparsities": [DEFAULT_K if sparsity is None else sparsity]}
    fields |= {"batch_size": batch_size} if batch_size is not None else {}
    warmups = ("sparsity_warmup_steps", "sparsity_warmup_fraction")  # which one is the longer, the number of steps decides
    unsized = {name: value for name, value in fields.items() if not (length and name in warmups)}
    plain = _parsed(unsized | ({"tokens": 2**62} if length else {}))  # the template fills in the batch size
    size = plain.batch_size if batch_size is not None or rows is None else min(plain.batch_size, rows)
    if length is None:
        tokens = max(plain.tokens, size)
    elif length[0] == "steps":
        tokens = int(length[1]) * size
    elif length[0] == "tokens":
        tokens = int(length[1])
    elif rows is None:
        raise InputError("epochs: an iterator has no known number of rows; give steps or tokens.")
    else:
        tokens = max(size, math.ceil(length[1] * rows))
    config = _parsed(fields | {"batch_size": size, "tokens": tokens})
    (sae,) = config.saes()
    if sparsity is None and not sae.counts_latents:
        raise InputError(f"sparsity: a {sae.architecture} with {sae.latents} latents needs its coefficient, such as sparsity=1e-3.")
    return sae


def _parsed(fields: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        sentences = []
        for detail in error.errors():
            field = str(detail["loc"][0]) if detail["loc"] else ""
            reason = detail["msg"].removeprefix("Value error, ")
            given = f" (it is {detail['input']!r})" if field else ""
            sentences.append(f"{_PARAMETERS.get(field, field)}: {reason}{given}" if field else reason)
        raise InputError("\n".join(dict.fromkeys(sentences))) from error


def _names(hook: str | Sequence[str]) -> tuple[str, ...]:
    return (hook,) if isinstance(hook, str) else tuple(hook)


def _ports(side: Stats, names: tuple[str, ...]) -> tuple[Port, ...]:
    if names and len(names) != len(side.widths):
        raise InputError(f"hook: {len(names)} hooks are named, and the rows span {len(side.widths)}: name each, or none.")
    labels = names or [""] * len(side.widths)
    return tuple(Port(label, d, scale) for label, d, scale in zip(labels, side.widths, side.scales, strict=True))


def _begin(config: SaeConfig, wiring: Wiring, output: Stats, device: torch.device, monitors: Monitors) -> Loop:
    """Return the loop before its first step."""
    means = output.mean.split([port.d for port in wiring.outputs])
    seen = [mean / unit for mean, unit in zip(means, wiring.output_units(config), strict=True)]
    if config.initial_sae:
        sae = started_from(config, wiring, read_start(config.initial_sae))
    else:
        sae = initial_sae(config, wiring.shape, torch.cat(seen).float())
    loop = Loop(sae.to(device), config, History())
    loop.monitors = monitors
    return loop


def _train(loop: Loop, source: RowSource, wiring: Wiring, device: torch.device) -> None:
    units = [wiring.input_units(loop.config)] + ([wiring.output_units(loop.config)] if wiring.targets else [])
    ports = [wiring.inputs, wiring.targets][: len(units)]
    columns = [_columns(unit, side).to(device) for unit, side in zip(units, ports, strict=True)]
    loop.monitors.begin([])
    try:
        for batch in source.batches(loop.config.batch_size, loop.config.steps, loop.config.seed):
            loop.step(*(side.to(device).float() / column for side, column in zip(batch, columns, strict=True)))
        loop.check_finite()
    finally:
        loop.monitors.on_end()


def _columns(units: Sequence[float], ports: Sequence[Port]) -> torch.Tensor:
    """Return one unit per column [d]."""
    return torch.cat([torch.full((port.d,), unit) for unit, port in zip(units, ports, strict=True)])


def _finish(loop: Loop, wiring: Wiring, model: str | None, inputs: tuple[str, ...], targets: tuple[str, ...]) -> Sae:
    """Return the folded SAE with its description; what the last logged steps measured goes into its metadata."""
    config = loop.config
    sae = fold(loop.sae, wiring.input_units(config), wiring.output_units(config)).requires_grad_(False)
    last = asdict(loop.history.rows[-1])
    measured = {name: last[name] for name in ("step", "tokens", "l0", "fvu", "dead_latents")}
    return sae.with_cfg(sae.describe(inputs, targets, model, {"training": measured}))
