"""Where things lie in the bucket. Nobody else builds a path."""

import re

from scopemill.proto.errors import InputError

LIVE = "live"  # folder of the rows that a training run reports while it runs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def checked_name(kind: str, name: str) -> str:
    """The name, if it can be one folder of the bucket; InputError otherwise."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{kind} {name!r} is not a usable name: letters, digits, '.', '_' and '-' only")
    return name


def width_label(width: int) -> str:
    """Gemma Scope's names: ``16k`` for 2**14, ``1m`` for 2**20; a width that is no whole multiple keeps its digits."""
    if width % 2**20 == 0:
        return f"{width // 2**20}m"
    if width >= 1024 and width & (width - 1) == 0:
        return f"{width // 1000}k"
    return str(width)


def history_part(part: int) -> str:
    """Return the name of one object of reported training rows."""
    return f"{part:05d}.jsonl"


class DatasetLayout:
    """``activations/<dataset>/``"""

    def __init__(self, name: str):
        self.root = f"activations/{checked_name('dataset', name)}"
        self.manifest = f"{self.root}/dataset.json"
        self.packing = f"{self.root}/packing.json"
        self.rolling = f"{self.root}/rolling.json"
        self.reserved = f"{self.root}/packed/reserved.safetensors"

    def packed(self, shard: int) -> str:
        return f"{self.root}/packed/{shard:05d}.safetensors"

    def array(self, shard: int, array: str) -> str:
        return f"{self.shard(shard)}/{array}"

    @property
    def shards(self) -> str:
        return f"{self.root}/shards"

    def shard(self, shard: int) -> str:
        return f"{self.shards}/{shard:05d}.zarr"

    @property
    def commits(self) -> str:
        return f"{self.root}/commits"

    def commit(self, shard: int) -> str:
        return f"{self.commits}/{shard:05d}.json"


class SaeLayout:
    """``saes/<model>/<hook>/width_16k/<architecture>/<id>/``: one SAE, its checkpoints and its measured quality."""

    def __init__(self, root: str):
        self.root = root
        self.config = f"{root}/cfg.json"
        self.weights = f"{root}/sae_weights.safetensors"
        self.metrics = f"{root}/metrics.json"
        self.provenance = f"{root}/provenance.json"
        self.history = f"{root}/history.parquet"
        self.live = f"{root}/{LIVE}"  # the history's rows as they come, as JSON lines
        self.stopped = f"{root}/stopped.json"  # written when rivals outdo it; deleted, its training goes on
        self.checkpoints = f"{root}/checkpoints"

    @staticmethod
    def of(model: str, hook: str, width: int, architecture: str, id: str) -> "SaeLayout":
        return SaeLayout(f"saes/{model}/{hook}/width_{width_label(width)}/{architecture}/{id}")

    def checkpoint(self, step: int) -> "CheckpointLayout":
        return CheckpointLayout(f"{self.checkpoints}/{step:08d}")


class CheckpointLayout:
    """``checkpoints/<step>/``; ``checkpoint.json`` is written last and makes it one."""

    def __init__(self, root: str):
        self.root = root
        self.weights = f"{root}/weights.safetensors"
        self.optimizer = f"{root}/optimizer.safetensors"
        self.record = f"{root}/checkpoint.json"
        self.metrics = f"{root}/metrics.json"


class SweepLayout:
    """``sweeps/<name>/``"""

    def __init__(self, name: str):
        self.root = f"sweeps/{checked_name('sweep', name)}"
        self.config = f"{self.root}/sweep.yaml"
        self.halving = f"{self.root}/halving.json"
        self.results = f"{self.root}/results.parquet"
        self.results_csv = f"{self.root}/results.csv"
        self.report = f"{self.root}/report.html"
        self.plots = f"{self.root}/plots"
