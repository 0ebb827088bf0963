"""Build every path in the bucket; no other module does."""

import re

from scopemill.proto.errors import InputError

RESUMABLE = 2  # the newest checkpoints of an SAE, which keep their optimizer states
LIVE = "live"  # folder of the rows that a training run reports while it runs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a file system takes 255, and names of files are made of it


def checked_name(kind: str, name: str) -> str:
    """Return the name if it can be a folder of the bucket; raise InputError otherwise."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{kind} {name!r} is not a usable name: use letters, digits, '.', '_' and '-' only, at most 200, and begin with a "
            "letter or digit"
        )
    return name


def width_label(width: int) -> str:
    """Return Gemma Scope's label of a width: ``16k`` for 2**14, ``1m`` for 2**20.

    A width that is neither a power of two nor a multiple of 2**20 keeps its digits.
    """
    if width % 2**20 == 0:
        return f"{width // 2**20}m"
    if width >= 1024 and width & (width - 1) == 0:
        return f"{width // 1000}k"
    return str(width)


def history_part(part: int) -> str:
    """Return the name of one object of reported training rows."""
    return f"{part:05d}.jsonl"


class DatasetLayout:
    """Hold the paths of a dataset, below ``activations/<dataset>/``."""

    def __init__(self, name: str):
        self.root = f"activations/{checked_name('dataset', name)}"
        self.manifest = f"{self.root}/dataset.json"
        self.packing = f"{self.root}/packing.json"
        self.rolling = f"{self.root}/rolling.json"
        self.reserved = f"{self.root}/packed/reserved.safetensors"

    def packed(self, shard: int) -> str:
        """Return the path of a shard's packed text."""
        return f"{self.root}/packed/{shard:05d}.safetensors"

    def array(self, shard: int, array: str) -> str:
        """Return the folder of one array of a shard."""
        return f"{self.shard(shard)}/{array}"

    @property
    def shards(self) -> str:
        """Return the folder of all shards."""
        return f"{self.root}/shards"

    def shard(self, shard: int) -> str:
        """Return the folder of a shard's Zarr group."""
        return f"{self.shards}/{shard:05d}.zarr"

    @property
    def commits(self) -> str:
        """Return the folder of the commit records."""
        return f"{self.root}/commits"

    def commit(self, shard: int) -> str:
        """Return the path of a shard's commit record."""
        return f"{self.commits}/{shard:05d}.json"


class SaeLayout:
    """Hold the paths of one SAE, below ``saes/<model>/<hook>/width_16k/<architecture>/<id>/``."""

    def __init__(self, root: str):
        self.root = root
        self.config = f"{root}/cfg.json"
        self.weights = f"{root}/sae_weights.safetensors"
        self.metrics = f"{root}/metrics.json"
        self.provenance = f"{root}/provenance.json"
        self.history = f"{root}/history.parquet"
        self.live = f"{root}/{LIVE}"  # the history's rows as they come, as JSON lines
        self.stopped = f"{root}/stopped.json"  # written by early stopping; delete the file to continue the training
        self.finetuned = f"{root}/finetuned.json"  # of a fine-tuned SAE: its losses before and after
        self.checkpoints = f"{root}/checkpoints"
        self.evidence = f"{root}/evidence" if root else "evidence"

    @staticmethod
    def of(model: str, hook: str, width: int, architecture: str, id: str) -> "SaeLayout":
        """Return the layout of an SAE of this model, hook, width and architecture."""
        return SaeLayout(f"saes/{model}/{hook}/width_{width_label(width)}/{architecture}/{id}")

    def checkpoint(self, step: int) -> "CheckpointLayout":
        """Return the layout of the checkpoint at a step."""
        return CheckpointLayout(f"{self.checkpoints}/{step:08d}")


class CheckpointLayout:
    """Hold the paths of a checkpoint; ``checkpoint.json`` is written last and commits the checkpoint."""

    def __init__(self, root: str):
        self.root = root
        self.weights = f"{root}/weights.safetensors"
        self.optimizer = f"{root}/optimizer.safetensors"
        self.record = f"{root}/checkpoint.json"
        self.metrics = f"{root}/metrics.json"


class EvidenceLayout:
    """Hold the paths of one SAE's evidence; ``evidence.json`` is written last and commits it."""

    def __init__(self, sae: str, settings_hash: str):
        self.root = f"{SaeLayout(sae).evidence}/{settings_hash}"
        self.record = f"{self.root}/evidence.json"
        self.latents = f"{self.root}/latents.parquet"
        self.examples = f"{self.root}/examples.arrow"
        self.tokens = f"{self.root}/tokens.parquet"
        self.labels = f"{self.root}/labels"
        self.output_scores = f"{self.root}/output_scores.parquet"
        self.answers = f"{self.labels}/answers"  # of the endpoint that labels latents, by what it was asked
        self.page = f"{self.root}/page"  # static: its index.html opens from disk or a file server
        self.page_index = f"{self.page}/index.html"  # written last
        self.work = f"{self.root}/work"  # removed once the evidence is committed
        self.parts = f"{self.work}/parts"

    def label_file(self, name: str) -> str:
        """Return the path of a table of labels."""
        return f"{self.labels}/{name}.parquet"

    def answer(self, digest: str) -> str:
        """Return the path of the answer to a request."""
        return f"{self.answers}/{digest[:2]}/{digest}.json"

    def part(self, name: str) -> str:
        """Return the path of the record that commits the ledgers of some shards."""
        return f"{self.parts}/{name}.json"

    def ledger(self, name: str, first: int) -> str:
        """Return the path of a part's ledger of the latents from ``first`` on."""
        return f"{self.work}/ledgers/{name}/{first:08d}.safetensors"

    def sample(self, name: str) -> str:
        """Return the path of a part's share of the sampled rows."""
        return f"{self.work}/ledgers/{name}/sample.safetensors"


class SweepLayout:
    """Hold the paths of a sweep, below ``sweeps/<name>/``."""

    def __init__(self, name: str):
        self.root = f"sweeps/{checked_name('sweep', name)}"
        self.config = f"{self.root}/sweep.yaml"
        self.plan = f"{self.root}/plan.json"
        self.halving = f"{self.root}/halving.json"
        self.submission = f"{self.root}/submission.json"  # the sweep file as its newest run was given it
        self.progress = f"{self.root}/progress.json"  # rewritten every few seconds while a run is at work
        self.requests = f"{self.root}/requests"  # what its driver is asked to do; each is removed once it is done
        self.withdrawn = f"{self.root}/withdrawn.json"  # SAEs that were stopped or deleted on request
        self.results = f"{self.root}/results.parquet"
        self.results_csv = f"{self.root}/results.csv"
        self.probes = f"{self.root}/probes.parquet"
        self.probes_csv = f"{self.root}/probes.csv"
        self.report = f"{self.root}/report.html"
        self.plots = f"{self.root}/plots"


class TemplateLayout:
    """Hold the places of a bucket's training templates."""

    root = "training-templates"

    def __init__(self, name: str):
        self.path = f"{self.root}/{checked_name('training template', name)}.json"


class LeaseLayout:
    """Hold the folders of leases: one for each sweep and one for each dataset."""

    sweeps = "leases/sweeps"

    @staticmethod
    def sweep(name: str) -> str:
        """Return the folder of a sweep's lease."""
        return f"{LeaseLayout.sweeps}/{checked_name('sweep', name)}"

    @staticmethod
    def dataset(name: str) -> str:
        """Return the folder of a dataset's lease."""
        return f"leases/activations/{checked_name('dataset', name)}"


def short_name(folder: str) -> str:
    """Return the name that people see of an SAE: its folder below ``saes``."""
    return folder.rstrip("/").rpartition("saes/")[2]
