"""Read the sweep file: one YAML for a whole sweep.

It has model, text, hooks and SAEs, and the places of everything.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from scopemill.activation_server.config import ServerConfig
from scopemill.deploy.plan.submission import Stored, Submission, stored_at
from scopemill.deploy.plan.yaml_text import parsed
from scopemill.evaluator.config import EvaluationConfig, EvidenceConfig
from scopemill.harvester.config import CorpusConfig, HarvestConfig, ModelConfig
from scopemill.proto.config import HOLDS_CREDENTIAL, Config, Place
from scopemill.proto.errors import InputError, SweepFileError
from scopemill.proto.layout import checked_name
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import SaeConfig

C = TypeVar("C", bound=Config)


class SweepConfig(Config):
    """Hold a sweep file's content."""

    name: str = Field(description="Names the sweep's folder in the bucket.")
    bucket: Place = Field(min_length=1, description="Where everything goes: a folder or any fsspec URL, such as s3://bucket/prefix.")
    model: ModelConfig = Field(description="The language model: a Hugging Face id or a local folder, or a mapping with more.")
    corpus: CorpusConfig = Field(description="The text to harvest.")
    harvest: HarvestConfig = Field(description="Which activations, and how many.")
    train: TrainConfig = Field(description="Which SAEs, and how they are trained.")
    server: ServerConfig = Field(ServerConfig.model_validate({}), description="The activation server.")
    evaluation: EvaluationConfig = Field(EvaluationConfig.model_validate({}), description="How checkpoints are measured.")
    evidence: EvidenceConfig | None = Field(
        None, description="What is found out about every latent of a finished SAE; {} takes the defaults. Absent: nothing."
    )
    file_sd: Place | None = Field(
        None, description="Where Prometheus' file_sd file is written; absent: in a folder of the user's own in the temporary directory."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="For a Prometheus elsewhere: metrics are exposed at the nodes' addresses, and listed at /targets at this port of the "
        "driver's node (http_sd); absent: all on loopback.",
    )

    _folder: str = PrivateAttr(default_factory=os.getcwd)  # in which relative paths are meant
    _home: str | None = PrivateAttr(None)  # the bucket that the file was read from, wherever that has moved to

    @model_validator(mode="after")
    def _text_for_finetuning(self) -> "SweepConfig":
        if self.train.finetune:
            kl, length = self.train.finetune.kl, self.harvest.context_length
            needed = kl.steps(length) * kl.sequences_per_step * length
            if needed > self.harvest.tokens:
                raise ValueError(
                    f"train.finetune.kl.tokens: fine-tuning takes {needed:,} tokens of the harvest's text, which has "
                    f"{self.harvest.tokens:,}: lower it, or raise harvest.tokens"
                )
        return self

    @model_validator(mode="after")
    def _usable_names(self) -> "SweepConfig":
        for kind, name in (("name", self.name), ("harvest.dataset", self.dataset)):
            try:
                checked_name(kind, name)
            except InputError as error:
                raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _a_gpu_for_each_part_of_the_model(self) -> "SweepConfig":
        for section, gpus in (("harvest", self.harvest.gpus), ("evaluation", self.evaluation.gpus)):
            if self.model.devices > 1 and gpus != self.model.devices:
                raise ValueError(
                    f"{section}.gpus: model.devices splits the model over {self.model.devices} GPUs, and each process of this section has "
                    f"{gpus:g}: give both the same number"
                )
        return self

    @property
    def dataset(self) -> str:
        """Return the name of the activation dataset."""
        return self.harvest.dataset or self.name

    def located(self) -> "SweepConfig":
        """Return a copy with absolute local paths: actors may work in another folder."""
        update: dict[str, Any] = {"bucket": self._home or self._absolute(self.bucket)}
        update["corpus"] = self._located_corpus(self.corpus)
        if self.server.keys:
            update["server"] = self.server.model_copy(update={"keys": self._absolute(self.server.keys)})
        if (model := Path(self._folder, self.model.name)).is_dir():
            update["model"] = self.model.model_copy(update={"name": str(model.resolve())})
        if self.file_sd:
            update["file_sd"] = self._absolute(self.file_sd)
        update["evaluation"] = self._located_evaluation(self.evaluation)
        return self.model_copy(update=update)

    def located_start(self, sae: SaeConfig) -> SaeConfig:
        """Return an SAE's configuration with an absolute path of the SAE to start from.

        Trainers may work in another folder. URLs and Hugging Face ids stay as they are.
        """
        start = sae.initial_sae
        found = start and os.path.exists(self._absolute(start))
        return sae.model_copy(update={"initial_sae": self._absolute(start)}) if start and found else sae

    @property
    def submission(self) -> Submission:
        """Return what starts the sweep again."""
        return Submission(sweep=self.model_dump(mode="json"), folder=self._folder)

    def _absolute(self, place: str) -> str:
        return absolute(place, self._folder)

    def _located_corpus(self, corpus: CorpusConfig) -> CorpusConfig:
        return corpus if corpus.format == "hub" else corpus.model_copy(update={"source": self._absolute(corpus.source)})

    def _located_evaluation(self, evaluation: EvaluationConfig) -> EvaluationConfig:
        update: dict[str, Any] = {}
        if evaluation.corpus:
            update["corpus"] = self._located_corpus(evaluation.corpus)
        if evaluation.probes:
            update["probes"] = evaluation.probes.model_copy(update={"source": self._absolute(evaluation.probes.source)})
        return evaluation.model_copy(update=update)


def load_sweep(path: str, overrides: list[str] | None = None) -> SweepConfig:
    """Read and check a sweep file at any fsspec URL.

    The file in a bucket's folder of the sweep stands for what the sweep's newest run was given, from any folder and wherever the bucket
    has moved to. ``overrides`` are ``key.subkey=value``, the value in YAML. SweepFileError names the file, and each wrong field with the
    reason.
    """
    try:
        with fsspec.open(path, "r", encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise SweepFileError(f"sweep file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise SweepFileError(f"sweep file {path} is not text in UTF-8 ({error}): save it in this encoding") from error
    except Exception as error:  # stores raise errors of many kinds
        raise SweepFileError(f"sweep file {path} cannot be read: {error}") from error
    try:
        data = parsed(text)
    except ValueError as error:
        raise SweepFileError(f"{path} {error}") from error
    if not isinstance(data, dict):
        raise SweepFileError(f"{path} does not hold a mapping of fields")
    if (stored := stored_at(absolute(path, os.getcwd()))) and _is_unchanged(data, stored.submission):
        return _of_stored(stored, overrides or [], path)
    for override in overrides or []:
        _apply(data, override)
    return parse_sweep(data, path)


def _is_unchanged(data: dict[str, Any], submission: Submission) -> bool:
    """Return True if a file in the bucket says what its sweep was given, and nobody has edited it since.

    Earlier versions published it with absolute paths.
    """
    if data == submission.sweep:
        return True
    given = parse_sweep(submission.sweep, "the submission")
    given._folder = submission.folder
    return bool(data == given.located().model_dump(mode="json"))


def _of_stored(stored: Stored, overrides: list[str], path: str) -> SweepConfig:
    data, folder = stored.submission.sweep, stored.submission.folder
    bucket = data["bucket"]
    for override in overrides:
        _apply(data, override)
    config = parse_sweep(data, path)
    config._folder, config._home = folder, stored.bucket if config.bucket == bucket else None
    return config


def parse_sweep(data: dict[str, Any], source: str) -> SweepConfig:
    """Check a sweep file's content; ``source`` names the file in errors."""
    return parse_config(SweepConfig, data, source)


def parse_overrides(kind: type[C], overrides: list[str], source: str) -> C:
    """Return a configuration that has nothing but ``key=value`` overrides; ``source`` names them in errors."""
    data: dict[str, Any] = {}
    for override in overrides:
        _apply(data, override)
    return parse_config(kind, data, source)


def parse_config(kind: type[C], data: dict[str, Any], source: str) -> C:
    """Check fields against a configuration's model; SweepFileError has a sentence for each wrong one."""
    try:
        # Through JSON: there pydantic's strict mode takes a list for a tuple, and no other value of another type.
        return kind.model_validate_json(json.dumps(data, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise SweepFileError(f"{source} holds a value that no field accepts: {error}") from error
        raise SweepFileError("\n".join(_sentences(source, error.errors()))) from error


def _sentences(source: str, details: list[Any]) -> list[str]:
    """Write a sentence for each wrong field. A field that takes 'all' or a list fails as both: the list's reason is given."""
    by_field: dict[str, str] = {}
    for detail in details:
        field = _field(part for part in detail["loc"] if not str(part).startswith(("tuple[", "literal[")))
        or_all = detail["type"] == "literal_error" and detail["ctx"]["expected"] == "'all'"
        owner = next((known for known in by_field if known == field or known.startswith((f"{field}.", f"{field}["))), field)
        if not or_all:
            by_field.setdefault(owner, _reason(detail))
        elif owner in by_field:
            by_field[owner] += f"; {field.rsplit('.', 1)[-1]} can also be 'all'"
    return [f"{source}: {field}: {reason}" if field else f"{source}: {reason}" for field, reason in by_field.items()]


def _field(parts: Iterable[str | int]) -> str:
    """Join a field's path: ``train.variants[1].widths``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _reason(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return "there is no such field"
    if detail["type"] == HOLDS_CREDENTIAL:
        return str(detail["msg"])
    reason = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    given = detail["input"]
    if not isinstance(given, dict) and detail["type"] != "missing":
        reason += f", not {given!r}" if "should" in reason else f" (it is {given!r})"
    return f"{reason[0].lower()}{reason[1:]}"


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key.strip():  # the value is not repeated: it may hold a credential
        raise SweepFileError(f"--set {key!r} is not of the form key=value, such as train.tokens=1000000")
    *parents, last = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise SweepFileError(f"--set {key}: {parent} is a value, and has no fields of its own")
    try:
        data[last] = parsed(value)
    except ValueError as error:  # the reason is not repeated: it shows the value
        raise SweepFileError(f"--set {key}: the value cannot be read as YAML") from error


def absolute(place: str, folder: str) -> str:
    """Return a local path, meant from a folder, as an absolute one.

    A URL stays as it is.
    """
    return place if "://" in place or "::" in place else os.path.normpath(os.path.join(folder, os.path.expanduser(place)))
