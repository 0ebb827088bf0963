"""A configuration holds what its kind of SAE reads: training touches every field that it has, and asks for none that it lacks."""

import inspect

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support import sparse_kinds
from support.sae_reference import quick

from scopemill.proto.dataset import HookStats, pack_vector
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import Kind, Recipe, SaeConfig, kind_of, kinds, readers, sae_config
from scopemill.trainer.config.templates import load_template, templates
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.sae_trainer import SaeTrainer

KINDS = {str(kind): kind for kind in kinds()}
PLANNED = {"input_site", "target_site"}  # read when a sweep is planned, before any training
ROWS = 16


class Recording:
    """A configuration that notes which fields are asked for, also through its properties."""

    def __init__(self, config: SaeConfig):
        self.config, self.asked = config, set[str]()

    def __getattr__(self, name: str):
        found = inspect.getattr_static(type(self.config), name, None)
        if isinstance(found, property):
            return found.fget(self)
        if name in Recipe.model_fields:
            self.asked.add(name)
        return getattr(self.config, name)


def options(kind: Kind) -> dict:
    """Values with which every field is of consequence."""
    fields = dict(frequency_limit=0.5, resample_every=2, pre_activation_coefficient=0.1, auxk_latents=2, skip_rank=2, initial_l0=4.0)
    given = dict(architecture=kind.architecture, activation=kind.latents, penalty=kind.penalty or "l0", sparsity=4.0, width=64)
    return (
        given
        | fields
        | dict(
            tokens=4 * ROWS, batch_size=ROWS, dead_after_tokens=1, lr_warmup_steps=1, checkpoint_every=3, log_every=2, prefixes=[0.5, 1.0]
        )
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_reads_every_field_that_a_configuration_has_and_no_other(tmp_path, kind):
    recording = Recording(quick(**options(kind)))
    assert (
        kind_of(recording.config.model_dump()) == kind and type(recording.config).model_fields.keys() - {"width", "sparsity"} == kind.reads
    )
    shape = sparse_kinds.shape_of(kind.architecture)
    sides = [[HookStats(name=f"{side}.{i}", d=d, scale=1.0, mean=pack_vector(np.zeros(d)), norm_limit=None) for i, d in enumerate(widths)]
             for side, widths in (("in", shape.inputs), ("out", () if shape.autoencoder else shape.outputs))]  # fmt: skip
    stream = StreamSpec("data", tuple(hook.name for side in sides for hook in side), batch_size=ROWS, seed=0, shards_side_by_side=1)
    assignment = Assignment("sae", "saes/sae", tuple(sides[0]), tuple(sides[1]), stream, recording, "model", {}, {})
    trainer = SaeTrainer(Bucket(str(tmp_path)), assignment, torch.device("cpu"), lambda: 0.0)
    trainer.begin()
    rows = [torch.randn(ROWS, hook.d, generator=torch.Generator().manual_seed(1)) for side in sides for hook in side]
    for step in range(4):
        trainer.take(step, trainer.view.of(rows))
    trainer.end()
    assert trainer.outcome == 4
    fixed = {"resample_every", "initial_decoder_bias", "sparsity_warmup_steps", "sparsity_warmup_fraction", "tied_weights"}
    assert recording.asked - kind.reads <= fixed
    assert kind.reads - recording.asked == PLANNED & kind.reads


@pytest.mark.parametrize("name", KINDS)
def test_a_field_that_is_not_read_is_refused_with_its_value_and_its_readers(name):
    kind = KINDS[name]
    counted = {"sparsities": [4]} if kind.latents in ("topk", "batchtopk") else {"sparsities": [0.1]}
    given = {"widths": [64], "template": "quick", "architecture": kind.architecture, "activation": kind.latents} | counted
    given |= {"penalty": kind.penalty} if kind.penalty else {}
    (config,) = TrainConfig.model_validate(given).saes()
    assert type(config).model_fields.keys() - {"width", "sparsity"} == kind.reads
    for field in Recipe.model_fields.keys() - kind.reads:
        value = load_template("quick").fields.get(field, Recipe.model_fields[field].default)
        if value is None:
            TrainConfig.model_validate(given | {field: None})  # says nothing
        else:
            with pytest.raises(ValidationError) as caught:
                TrainConfig.model_validate(given | {field: value})
            (error,) = caught.value.errors()
            assert error["msg"] == (
                f"Value error, {field} ({value!r}) has no effect: it is read by {readers(field)}, and not by a {name}; "
                f"leave {field} out, or change architecture, activation or penalty"
            )


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("seed", "every architecture"),
        ("initial_decoder_bias", "every architecture but skip_transcoder"),
        ("prefixes", "matryoshka"),
        ("input_site", "transcoder, skip_transcoder, clt and per_layer_transcoder"),
        ("bandwidth", "SAEs with jumprelu latents"),
        ("auxk_latents", "SAEs with topk or batchtopk latents"),
        ("frequency_limit", "SAEs with jumprelu latents and penalty l0 or target_l0"),
        ("resample_every", "standard, jumprelu, matryoshka and skip with relu or jumprelu latents"),
    ],
)
def test_the_readers_of_a_field_in_words(field, words):
    assert readers(field) == words


def test_a_template_fills_only_what_the_chosen_architecture_reads():
    for template in templates():
        for kind in kinds():
            config = quick(**template.fields | dict(architecture=kind.architecture, activation=kind.latents, sparsity=4.0))
            assert type(config).model_fields.keys() - {"width", "sparsity"} == kind_of(config.model_dump()).reads


def test_what_no_sae_knows_is_refused_by_a_configuration_too():
    with pytest.raises(ValidationError, match="momentum"):
        sae_config(quick().model_dump() | {"momentum": 0.9})


@pytest.mark.parametrize("wrong", [{"architecture": "relu"}, {"architecture": 3}, {"penalty": "l2"}, {"activation": ["relu"]}])
def test_a_kind_that_there_is_not_is_refused_by_its_own_field(wrong):
    (field,) = wrong
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate({"widths": [64], "sparsities": [0.1], "bandwidth": 0.1} | wrong)
    assert field in {error["loc"][0] for error in caught.value.errors()}
