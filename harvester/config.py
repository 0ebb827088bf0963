"""What to harvest: which model, which text, which hooks, how much of it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scopemill.proto.config import Config, NodeLabels, Place
from scopemill.proto.dataset import Dtype
from scopemill.proto.hooks import SITES

Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_z", "mlp_in", "mlp_out", "attn_out"]
assert set(Site.__args__) == set(SITES)  # type: ignore[attr-defined]
Layer = Annotated[int, Field(ge=0)]


class ModelConfig(Config):
    """A language model. In a sweep file `model: google/gemma-2-2b` is short for `model: {name: google/gemma-2-2b}`."""

    name: str = Field(min_length=1, description="A Hugging Face id or a local folder with config.json, weights and tokenizer.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; the default branch if absent.")
    dtype: Dtype = Field("float32", description="Precision of the forward pass.")
    device: str = Field("auto", description="A torch device, or 'auto': the GPU that Ray gave the actor, else the CPU.")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value):
        return {"name": value} if isinstance(value, str) else value


class CorpusConfig(Config):
    """The text."""

    source: Place = Field(min_length=1, description="A file, folder or glob at any fsspec URL; for `hub` a data set's name.")
    format: Literal["lines", "files", "jsonl", "parquet", "hub"] = Field(
        description="lines: a document per line; files: one per file; jsonl, parquet: one per row; hub: streamed by name."
    )
    column: str = Field("text", description="The column with the text, for jsonl, parquet and hub.")
    subset: str | None = Field(None, description="The configuration of a hub data set, such as a language.")
    split: str = Field("train", description="The split of a hub data set.")


class HarvestConfig(Config):
    """All hooks at once, in one pass over the model, or in several that fit the budgets."""

    dataset: str | None = Field(None, description="Name of the activation dataset; the sweep's name if absent.")
    layers: tuple[Layer, ...] | Literal["all"] = Field(description="Layers to read, from 0, or 'all'.")
    sites: tuple[Site, ...] | Literal["all"] = Field(description="Sites to read at each layer, or 'all' that the model has.")
    tokens: int = Field(ge=1, description="Rows to harvest at each hook; rounded down to whole shards.")
    context_length: int = Field(1024, ge=2, description="Tokens per sequence, the BOS that opens it included.")
    rows_per_shard: int = Field(2**20, ge=1, description="Rows shuffled together; they become one shard.")
    dtype: Dtype = Field("bfloat16", description="Precision on disk.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the shuffle.")
    calibration_rows: int = Field(2**16, ge=1, description="Rows, spread over the whole corpus, that fix the scale C.")
    outlier_norm: float | None = Field(
        None, gt=1, description="Drop tokens whose norm at any hook is above this many times its median (activation sinks)."
    )
    outlier_spare: float = Field(0.01, gt=0, lt=1, description="Share of extra rows per shard that may be dropped as outliers.")
    sequences_per_forward: int = Field(32, ge=1, description="Sequences in one forward pass.")
    rolling: int | None = Field(
        None,
        ge=1,
        description="Rolling mode: at most so many shards on disk, made while trainers read and deleted behind them; absent: all are kept.",
    )
    disk_gib: float | None = Field(
        None,
        gt=0,
        description="Room for shards. If all hooks do not fit, they are harvested in passes, each deleted once its SAEs are finished.",
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description="Room for the shards that one harvester holds in memory. If all hooks do not fit, they are harvested in passes.",
    )
    actors: int = Field(1, ge=1, description="Harvester actors.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves per harvester; also its threads.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves per harvester.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that harvesters run on; absent: any node.")

    @model_validator(mode="after")
    def _consistent(self):
        for field in ("layers", "sites"):
            value = getattr(self, field)
            if value != "all" and (not value or len(set(value)) != len(value)):
                raise ValueError(f"{field} must name at least one, and none twice")
        if self.rolling and self.disk_gib:
            raise ValueError(f"rolling ({self.rolling}) bounds the disk already: leave disk_gib out")
        if self.tokens < self.rows_per_shard:
            raise ValueError(f"tokens ({self.tokens}) is less than one shard (rows_per_shard = {self.rows_per_shard})")
        return self
