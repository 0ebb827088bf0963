"""Templates on the demo's rows: L0, FVU and dead share on held-out rows, as they are or with fields changed.

``python tests/bench/templates.py`` surveys every template, or those that are named: the table of docs/training-guide.md. With ``--set
FIELD=VALUES`` it tries every combination of values, and prints FVU at L0 8 to 128, interpolated as `make frontier` does:

    python tests/bench/templates.py quick --set adam_beta1=0,0.9 learning_rate=3e-3,1e-2 --rows 200_000 --seeds 0,1

Rows, their order and the judge are those of `make frontier`. Templates made for billions of rows are shortened: batches of 1,024 rows;
every count of steps and rows shrinks as the steps do, and the learning rate grows with the root of that, since Adam's steps add up like
a random walk's. One thread; what was trained before is kept in build/templates.
"""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent / "frontier"))
from curves import Point, fvu_at  # noqa: E402
from jobs import L0S, ROOT  # noqa: E402
from rows import demo_rows  # noqa: E402
from score import score  # noqa: E402
from train_ours import weights_of  # noqa: E402

from scopemill import train_sae  # noqa: E402
from scopemill.trainer.config.recipe import kind_of  # noqa: E402
from scopemill.trainer.config.templates import load_template, templates  # noqa: E402

ROWS = 586 * 1024  # that there are; more are further epochs
BATCH = 1024  # of templates with larger batches
LEAST_WARMUP = 20  # steps
KEPT = ROOT / "build" / "templates"
DATA = ROOT / "build" / "frontier" / "demo"
# Coefficients that bring L0 near 8, 16, 32, 64 and 128; tanh counts rows with E||x||^2 = d.
COEFFICIENTS = {"l0": (8e-3, 4e-3, 2e-3, 8e-4, 2e-4), "tanh": (0.4, 0.2, 0.1, 0.05, 0.02)}


@dataclass(frozen=True)
class Trained:
    sparsity: float
    l0: float
    fvu: float
    dead: float
    seconds: float


def shortened(fields: dict[str, Any], rows: int) -> dict[str, Any]:
    """A template's fields for so many rows: counts of steps and rows keep their share of the whole training, in smaller batches."""
    made_for = fields["tokens"]
    told = fields | {"tokens": rows, "batch_size": min(fields["batch_size"], BATCH)}
    if made_for <= 10 * rows:
        return told
    steps = -(-rows // told["batch_size"])
    share = steps / -(-made_for // fields["batch_size"])
    told["learning_rate"] = fields["learning_rate"] * share**-0.5
    told["lr_warmup_steps"] = max(LEAST_WARMUP, round(share * fields["lr_warmup_steps"]))
    told["sparsity_warmup_steps"] = round(share * fields.get("sparsity_warmup_steps", 0))
    told["dead_after_tokens"] = max(32 * told["batch_size"], round(share * fields["dead_after_tokens"]))
    return told


def sparsities(fields: dict[str, Any], l0s: Iterable[int]) -> list[float]:
    """What a template is told so that L0 comes near the wanted ones."""
    penalty = kind_of(fields).penalty
    return [l0 if penalty in (None, "target_l0") else COEFFICIENTS[penalty][L0S.index(l0)] for l0 in l0s]


def trained(template: str, fields: dict[str, Any], sparsity: float, width: int, seed: int) -> Trained:
    """Train and judge one SAE, unless that was done before."""
    settings = {name: value for name, value in fields.items() if name not in ("tokens", "batch_size")}
    content = json.dumps([code_version(), template, fields, sparsity, width, seed], sort_keys=True)
    path = KEPT / f"{hashlib.sha256(content.encode()).hexdigest()[:20]}.json"
    if path.exists():
        return Trained(**json.loads(path.read_text())["trained"])
    start = time.process_time()
    architecture = settings.pop("architecture")
    read = kind_of(fields).reads
    sae = train_sae(
        batches(fields["tokens"], fields["batch_size"]), architecture, width, sparsity, tokens=fields["tokens"],
        batch_size=fields["batch_size"], template=template, seed=seed, **{name: value for name, value in settings.items() if name in read},
    )  # fmt: skip
    seconds = time.process_time() - start
    judged = score(weights_of(sae), np.load(DATA / "held_out.npy"))
    result = Trained(sparsity, judged.l0, judged.fvu, judged.dead, seconds)
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"template": template, "fields": fields, "width": width, "seed": seed, "trained": asdict(result)}, indent=1))
    return result


def batches(rows: int, size: int) -> Iterator[torch.Tensor]:
    """Batches of the demo's rows, for as many epochs as it takes."""
    x = torch.from_numpy(np.load(DATA / "train.npy", mmap_mode="c"))
    pieces = x.split(size)
    return itertools.islice(itertools.cycle(pieces if len(pieces[-1]) == size else pieces[:-1]), -(-rows // size))


def code_version() -> str:
    """A hash of what trains; templates are in the fields."""
    files = sorted(path for folder in ("trainer", "proto") for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def survey(names: Iterable[str], given: argparse.Namespace) -> Table:
    title = f"{given.rows:,} rows, {given.width:,} latents, seed {given.seeds[0]}"
    table = Table("template", "sparsity", "L0", "FVU", "dead", "seconds", title=title)
    for name in names:
        fields = shortened(load_template(name).fields, given.rows)
        for sparsity in given.sparsities or sparsities(fields, given.l0s):
            one = trained(name, fields, sparsity, given.width, given.seeds[0])
            table.add_row(name, f"{sparsity:g}", f"{one.l0:.1f}", f"{one.fvu:.3f}", f"{one.dead:.1%}", f"{one.seconds:.0f}")
            print(f"{name} {sparsity:g}: L0 {one.l0:.1f}, FVU {one.fvu:.3f}, dead {one.dead:.1%}, {one.seconds:.0f} s", flush=True)
    return table


def comparison(names: Iterable[str], values: dict[str, list[Any]], given: argparse.Namespace) -> Table:
    table = Table("template", "changed", "seed", *(f"FVU at L0 {l0}" for l0 in L0S), "L0", "most dead", "seconds")
    for name in names:
        template = shortened(load_template(name).fields, given.rows)
        for combination in itertools.product(*values.values()):
            changed = dict(zip(values, combination, strict=True))
            fields = template | changed
            for seed in given.seeds:
                chosen = given.sparsities or sparsities(fields, given.l0s)
                done = [trained(name, fields, sparsity, given.width, seed) for sparsity in chosen]
                points = [Point(one.l0, one.fvu) for one in done]
                told = ", ".join(f"{field} {value}" for field, value in changed.items())
                cells = [f"{fvu:.4f}" if (fvu := fvu_at(points, l0)) else "" for l0 in L0S]
                row = (name, told, str(seed), *cells, " ".join(f"{one.l0:.1f}" for one in done), f"{max(one.dead for one in done):.1%}")
                table.add_row(*row, f"{sum(one.seconds for one in done):.0f}")
                print(*row, f"{sum(one.seconds for one in done):.0f} s", sep=" | ", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Train SAEs by templates on the demo's rows, as they are or with fields changed.")
    parser.add_argument("names", nargs="*", help="templates; absent: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUES", help="values to try, with commas between them")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to train on; beyond those that there are, further epochs")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0])
    parser.add_argument(
        "--l0s", type=lambda text: [*map(int, text.split(","))], default=L0S, help="those of 8, 16, 32, 64, 128 to come near"
    )
    parser.add_argument("--sparsities", type=lambda text: [*map(float, text.split(","))], help="given to every template instead of --l0s")
    given = parser.parse_args()
    torch.set_num_threads(1)
    demo_rows(DATA, ROWS)
    names = given.names or [template.name for template in templates() if not template.own and template.name != "base-to-chat"]
    values = {field: [yaml_value(value) for value in given_values.split(",")] for field, given_values in (e.split("=") for e in given.set)}
    made = comparison(names, values, given) if values else survey(names, given)
    Console(width=170).print(made)


def yaml_value(text: str) -> Any:
    """A value as a sweep file reads it; numbers such as 3e-3 included, which YAML takes for words."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)


if __name__ == "__main__":
    main()
