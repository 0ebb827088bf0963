"""A model that is split over several devices is the same model.

Without two GPUs, accelerate's map has the processor and the disk: each layer's weights come to where its input is, as on GPUs.
"""

import json

import pytest
import torch
from support import tiny_sweep

from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model import model as model_module
from scopemill.harvester.language_model.model import LanguageModel, placement
from scopemill.proto.errors import ModelError, SweepFileError
from scopemill.proto.hooks import Hook

HOOKS = [Hook(1, "resid_post"), Hook(4, "attn_z"), Hook(5, "mlp_out")]
MAP = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "cpu"} | {
    f"model.layers.{layer}": "cpu" if layer < 3 else "disk" for layer in range(6)
}


@pytest.fixture(scope="module")
def split(model, tmp_path_factory) -> LanguageModel:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            model_module, "placement", lambda model: {"device_map": MAP, "offload_folder": str(tmp_path_factory.mktemp("part"))}
        )
        return LanguageModel(model)


def test_a_split_model_gives_the_same_bits(lm, split):
    assert set(split._bridge.original_model.hf_device_map.values()) == {"cpu", "disk"}
    assert split.device == lm.device
    tokens = torch.randint(3, 2048, (3, 24), generator=torch.Generator().manual_seed(0))
    for name, x in lm.capture(tokens, HOOKS).items():
        assert torch.equal(split.capture(tokens, HOOKS)[name], x), name
    assert torch.equal(split.token_losses(tokens), lm.token_losses(tokens))
    edits = {hook: (lambda x: x.roll(1, dims=-1) * 0.5) for hook in HOOKS}
    assert torch.equal(split.token_losses(tokens, edits), lm.token_losses(tokens, edits))


def test_as_many_gpus_are_asked_for_as_the_model_is_split_over(model, monkeypatch):
    wide = model.model_copy(update={"devices": 2})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placement(wide) == {"n_devices": 2}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="model.devices: .* is to be split over 2 GPUs, and this process sees 1"):
        placement(wide)
    with pytest.raises(ModelError, match="model.devices"):
        LanguageModel(wide)


def test_each_process_that_loads_the_model_has_its_gpus(model, tmp_path):
    def parse(harvest: float, evaluation: float):
        data = tiny_sweep.sweep(str(tmp_path), tmp_path / "text.jsonl", harvest={"gpus": harvest}, evaluation={"gpus": evaluation})
        return parse_sweep(data | {"model": {"name": model.name, "devices": 2}}, "sweep.yaml")

    assert parse(2, 2).model.devices == 2
    for wrong, section in (((1, 2), "harvest"), ((2, 0), "evaluation")):
        with pytest.raises(SweepFileError, match=f"{section}.gpus: model.devices splits the model over 2 GPUs, and each process of this"):
            parse(*wrong)
    with pytest.raises(ValueError, match="leave device out"):
        ModelConfig.model_validate_json(json.dumps({"name": "m", "devices": 2, "device": "cpu"}))
