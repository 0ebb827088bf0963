"""Ids of SAEs stay as they are: a finished SAE is found again by a later version."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import Field, ValidationError
from support.sae_reference import ONE

from scopemill.proto.errors import Conflict
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.config import grid
from scopemill.trainer.config.grid import Grid, TrainConfig
from scopemill.trainer.config.identity import LATER, VERSION_1, identities, identity, recorded_config
from scopemill.trainer.config.recipe import Recipe, SaeConfig
from scopemill.trainer.config.templates import Template, load_template
from scopemill.trainer.config.wiring import Port, Wiring
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

# Train sections, and for each of their SAEs the digest of its configuration as the version without kinds of SAEs wrote it: every
# template with every architecture and activation, fields of every kind, numbers that are whole, variants.
TABLE = json.loads((Path(__file__).parent / "sae_ids.json").read_text())


# What templates said when the table was written, where that has changed; None: nothing.
THEN = {
    "quick": {
        "learning_rate": 1e-3,
        "sparsity_warmup_steps": 300,
        "sparsity_warmup_fraction": None,
        "initial_threshold": 0.03,
        "bandwidth": 0.03,
        "dead_after_tokens": 200_000,
        "adam_beta1": None,
        "target_coefficient": 0.01,
    },
    "matryoshka": {"learning_rate": 2e-4},
    "anthropic-2025": {"target_coefficient": 0.01},  # the field's default then
    "gemma-scope-2": {"architecture": "jumprelu", "activation": None, "prefix_coefficients": None, "target_coefficient": 0.01},
}


@pytest.fixture
def templates_of_then(monkeypatch):
    def load(name: str) -> Template:
        template = load_template(name)
        fields = template.fields | THEN.get(name, {})
        return replace(template, fields={field: value for field, value in fields.items() if value is not None})

    monkeypatch.setattr(grid, "load_template", load)


def digests(grids: list[Grid]) -> list[str]:
    found = [identity(sae, one.filled) for one in grids for sae in one.saes()]
    return [hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:8] for one in found]


def accepted(sections: list) -> list:
    """The sections that are still accepted: a field that another one leaves without effect is refused by now."""
    kept = []
    for section, ids in sections:
        try:
            TrainConfig.model_validate_json(json.dumps(LATER | section))
        except ValidationError as error:
            assert "has no effect" in str(error), section
        else:
            kept.append((section, ids))
    assert len(kept) > 0.9 * len(sections)
    return kept


@pytest.mark.parametrize("through_a_file", [False, True])
def test_ids_are_those_of_earlier_versions(through_a_file, templates_of_then):
    assert len(TABLE) > 200
    for section, ids in accepted(TABLE):
        config = TrainConfig.model_validate_json(json.dumps(LATER | section))
        if through_a_file:
            config = TrainConfig.model_validate_json(config.model_dump_json())
        assert digests(list(config.grids.values())) == ids, section


def test_the_first_version_has_the_fields_and_defaults_of_its_day():
    config = TrainConfig.model_validate({"widths": [16], "sparsities": [0.1]} | LATER)
    named = identity(config.saes()[0], config.filled).keys()
    assert named == VERSION_1.keys() <= SaeConfig.model_fields.keys() | Recipe.model_fields.keys()
    assert hashlib.sha256(json.dumps(VERSION_1, sort_keys=True).encode()).hexdigest()[:8] == "de84fbeb"


def test_a_later_field_enters_only_where_it_is_not_the_default():
    sae = TrainConfig.model_validate({"widths": [16], "sparsities": [0.1]}).saes()[0]

    class Later(type(sae)):
        momentum: float = Field(0.0)

    fields = sae.model_dump()
    assert identity(Later(**fields), {}) == identity(sae, {})
    assert identity(Later(**fields, momentum=0.9), {}) == identity(sae, {}) | {"momentum": 0.9}
    assert identity(Later(**fields), {"momentum": 0.9}) == identity(sae, {}), "a later field that the SAE does not read"


def test_a_checkpoint_of_an_earlier_version_loads_and_is_resumed(tmp_path):
    sae = TrainConfig.model_validate({"widths": [16], "sparsities": [4], "template": "topk-openai"} | LATER).saes()[0]
    earlier = identity(sae, {"bandwidth": 0.5})
    assert recorded_config(earlier) == sae
    bucket, layout, port = Bucket(str(tmp_path)), SaeLayout("saes/sae"), Port("hook", 12, 1.0)
    loop = Loop(initial_sae(sae, ONE, torch.zeros(12)), sae, History())
    loop.skip_to(500)
    checkpoint.save(bucket, layout, Wiring((port,)), loop)
    path = layout.checkpoint(500).record
    record = checkpoint.read_record(bucket, layout, 500)
    bucket.write(path, checksummed_record(vars(record) | {"config": earlier}))
    assert checkpoint.load_sae(bucket, layout, 500)[1].sae_config == sae
    assert checkpoint.load_loop(bucket, layout, 500, sae).step_number == 500
    with pytest.raises(Conflict, match="trained with sparsity = 4.0, and this run asks for 5.0"):
        checkpoint.load_loop(bucket, layout, 500, sae.model_copy(update={"sparsity": 5.0}))


def test_how_often_training_saves_and_logs_is_in_no_id_and_earlier_ids_are_known(monkeypatch, tmp_path, templates_of_then):
    """An SAE that an earlier version named by its own values is among the candidates, whatever they were."""
    monkeypatch.setenv("SCOPEMILL_TEMPLATES", str(tmp_path))
    for section, ids in accepted(TABLE[::7]):
        config = TrainConfig.model_validate_json(json.dumps(LATER | section))
        candidates = [identities(sae, grid.filled, grid.template) for grid in config.grids.values() for sae in grid.saes()]
        for places, earlier in zip(candidates, ids, strict=True):
            hashed = [hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:8] for one in places]
            assert earlier in hashed[:2] and len(set(hashed)) == len(hashed)
            if not {"checkpoint_every", "log_every"} & section.keys() and not section.get("variants"):
                assert earlier == hashed[0], "its own values are the template's"


def test_another_pace_is_the_same_sae():
    given = {"widths": [16], "sparsities": [0.1], "template": "quick"}
    one, other = (TrainConfig.model_validate(given | pace) for pace in ({}, {"checkpoint_every": 7, "log_every": 3}))
    first, second = (identities(config.saes()[0], config.filled, "quick") for config in (one, other))
    assert first[0] == second[0] and first[0]["checkpoint_every"] == 500
    assert second[1]["checkpoint_every"] == 7, "as an earlier version would have named it"
    saved = identities(other.saes()[0], other.filled, "gemma-scope")
    assert first[0] in saved, "under another template it is found where it lies"


def test_a_checkpoint_is_resumed_at_another_pace(tmp_path):
    given = {"widths": [16], "sparsities": [4], "template": "topk-openai"}
    sae = TrainConfig.model_validate(given).saes()[0]
    bucket, layout, port = Bucket(str(tmp_path)), SaeLayout("saes/sae"), Port("hook", 12, 1.0)
    loop = Loop(initial_sae(sae, ONE, torch.zeros(12)), sae, History())
    loop.skip_to(500)
    checkpoint.save(bucket, layout, Wiring((port,)), loop)
    other = TrainConfig.model_validate(given | {"checkpoint_every": 7, "log_every": 3}).saes()[0]
    assert checkpoint.load_loop(bucket, layout, 500, other).config.checkpoint_every == 7
