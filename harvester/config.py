"""Configure a harvest: model, text, hooks and size."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from scopemill.proto.config import Config, NodeLabels, Place
from scopemill.proto.dataset import Dtype
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import SITES

Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_z", "mlp_in", "mlp_out", "attn_out"]
assert set(Site.__args__) == set(SITES)  # type: ignore[attr-defined]
Layer = Annotated[int, Field(ge=0)]
_OF_ROWS = ("jsonl", "parquet", "hub")
_READ_BY = {"holds": _OF_ROWS, "column": _OF_ROWS, "subset": ("hub",), "split": ("hub",)}  # fields of a corpus that some formats alone read


class ModelConfig(Config):
    """Describe a language model.

    In a sweep file `model: google/gemma-2-2b` is short for `model: {name: google/gemma-2-2b}`.
    """

    name: Place = Field(min_length=1, description="A Hugging Face id, or a local folder with config.json, weights and tokenizer.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub. Default: the default branch.")
    dtype: Dtype = Field("float32", description="Precision of the forward pass.")
    device: str = Field("auto", description="A torch device. 'auto': the GPU that Ray gave the actor, or else the CPU.")
    devices: int = Field(
        1,
        ge=1,
        description="GPUs over which each harvester and evaluator splits the model, layer by layer; harvest.gpus and evaluation.gpus must "
        "be the same number. For models that one GPU cannot hold.",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_devices(self) -> Self:
        if self.devices > 1 and self.device not in ("auto", "cuda"):
            raise ValueError(f"devices: a model is split over GPUs, and device is {self.device}: leave device out")
        return self


def named_model(name: str) -> ModelConfig:
    """Return the configuration of a model of which only the name is given.

    Raises InputError if the name is empty or holds a credential.
    """
    try:
        return ModelConfig.model_validate({"name": name})
    except ValidationError as error:
        raise InputError(f"the language model's name: {error.errors(include_input=False)[0]['msg']}") from None


class CorpusConfig(Config):
    """Describe where text is read from."""

    source: Place = Field(
        min_length=1, description="A file, folder or glob at any fsspec URL; for `hub` the name of a dataset on the Hugging Face hub."
    )
    format: Literal["lines", "files", "jsonl", "parquet", "hub"] = Field(
        description="lines: one document per line; files: one per file; jsonl, parquet, hub: one per row. hub streams the dataset."
    )
    holds: Literal["text", "messages", "tokens"] = Field(
        "text",
        description="What the column of jsonl, parquet and hub holds. text; messages: a conversation, written out by the tokenizer's chat "
        "template; tokens: ids of the model's own tokenizer.",
    )
    column: str = Field(
        "text", description="Name of the column to read, for jsonl, parquet and hub; messages or input_ids where it holds those."
    )
    roles: tuple[str, ...] | None = Field(
        None,
        strict=False,
        description="For messages: rows are the tokens of what these roles say, such as [assistant]; the model reads the others all the "
        "same. Default: every token of the conversation, the template's own included.",
    )
    subset: str | None = Field(None, description="Configuration of a hub dataset, such as a language.")
    split: str = Field("train", description="Split of a hub dataset.")

    @model_validator(mode="before")
    @classmethod
    def _usual_column(cls, value: Any) -> Any:
        usual = {"messages": "messages", "tokens": "input_ids"}
        if isinstance(value, dict) and "column" not in value and value.get("holds") in usual:
            return value | {"column": usual[value["holds"]]}
        return value

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        for field, formats in _READ_BY.items():
            if self.format not in formats:
                self.check_effect(field, f"{', '.join(formats)} read it, and not the format {self.format}", "change format")
        if self.holds != "messages":
            self.check_effect("roles", f"only a conversation has roles, and the corpus holds {self.holds}", "set holds to messages")
        if self.roles is not None and (not self.roles or len(set(self.roles)) != len(self.roles)):
            raise ValueError("roles: must name at least one, and none twice")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the text.

        A field added after version 1 enters only where it is set, so that a new option renames no dataset.
        """
        later = {"holds": "text", "roles": None}
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in later or value != later[key]}


class HarvestConfig(Config):
    """Describe a harvest: its hooks, its size, and the resources that it may use."""

    dataset: str | None = Field(None, description="Name of the activation dataset. Default: the sweep's name.")
    layers: tuple[Layer, ...] | Literal["all"] = Field(
        description="Layers to read, counted from 0, or 'all': at each site the layers that have it."
    )
    sites: tuple[Site, ...] | Literal["all"] = Field(description="Sites to read at each layer, or 'all' for every site that the model has.")
    tokens: int = Field(ge=1, description="Rows to harvest at each hook; rounded down to whole shards.")
    context_length: int = Field(1024, ge=2, description="Tokens per sequence, including the BOS at its start.")
    rows_per_shard: int = Field(2**20, ge=1, description="Rows that are shuffled together and stored as one shard.")
    dtype: Dtype = Field("bfloat16", description="Precision of the activations on disk.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the row shuffle.")
    calibration_rows: int = Field(
        2**16, ge=1, description="Number of rows that fix the scale C of each hook; they are spread over the whole corpus."
    )
    drop_first_positions: int = Field(
        0,
        ge=0,
        description="Drop the first tokens of each sequence, BOS included, in training and evaluation: their activations are unlike all "
        "others. The model reads them all the same.",
    )
    outlier_norm: float | None = Field(
        None,
        gt=1,
        description="Drop tokens whose norm at any hook is above this multiple of the hook's median (activation sinks). "
        "Default: drop none.",
    )
    outlier_spare: float = Field(0.01, gt=0, lt=1, description="Share of extra rows packed per shard, to replace dropped outliers.")
    sequences_per_forward: int = Field(32, ge=1, description="Sequences in one forward pass.")
    rolling: int | None = Field(
        None,
        ge=1,
        description="Rolling mode: the most shards on disk at once. Shards are made while trainers read, and deleted once all trainers "
        "passed them. Default: keep all shards.",
    )
    disk_gib: float | None = Field(
        None,
        gt=0,
        description="Disk space for shards, in GiB. If all hooks do not fit, they are harvested in passes; a pass is deleted once its SAEs "
        "are finished. Default: no limit.",
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description="Memory for the shards that one harvester holds, in GiB. If all hooks do not fit, they are harvested in passes. "
        "Default: no limit.",
    )
    actors: int = Field(1, ge=1, description="Number of harvester actors.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves for each harvester; also its number of threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each harvester.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that harvesters run on. Default: any node.")

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        for field in ("layers", "sites"):
            value = getattr(self, field)
            if value != "all" and (not value or len(set(value)) != len(value)):
                raise ValueError(f"{field} must name at least one, and none twice")
        if self.rolling and self.disk_gib:
            raise ValueError(f"rolling ({self.rolling}) bounds the disk already: leave disk_gib out")
        if self.outlier_norm is None:
            self.check_effect("outlier_spare", "without outlier_norm no token is dropped", "give outlier_norm")
        if self.drop_first_positions >= self.context_length:
            raise ValueError(
                f"drop_first_positions ({self.drop_first_positions}) leaves no token of a sequence: it must be below context_length "
                f"({self.context_length})"
            )
        if self.tokens < self.rows_per_shard:
            raise ValueError(f"tokens ({self.tokens}) is less than one shard: lower rows_per_shard ({self.rows_per_shard}) or raise tokens")
        return self
