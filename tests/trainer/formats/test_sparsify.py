"""sparsify's folders: TopK SAEs and transcoders, with a skip connection or without."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.formats import read_finished, write_finished

D, F, K = 6, 12, 3
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


TENSORS = {"encoder.weight": random(F, D), "encoder.bias": random(F), "W_dec": random(F, D), "b_dec": random(D)}
SKIP = {"W_skip": random(D, D)}


def save(folder: Path, tensors: dict[str, torch.Tensor] = TENSORS, **config) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 2, "num_latents": 0, "k": K, "skip_connection": False, "transcode": False,
              "d_in": D} | config  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder)


def refusal(folder: str) -> str:
    with pytest.raises(SaeFormatError) as caught:
        read_finished(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_it_is_read_as_the_function_that_it_computes(tmp_path, transcode, skip):
    folder = save(tmp_path / "layers.5.mlp", TENSORS | (SKIP if skip else {}), transcode=transcode, skip_connection=skip)
    x = 2 * random(300, D)
    pre = (x if transcode else x - TENSORS["b_dec"]) @ TENSORS["encoder.weight"].T + TENSORS["encoder.bias"]
    latents = pre.relu() * (pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K])
    rebuilt = latents @ TENSORS["W_dec"] + TENSORS["b_dec"] + (x @ SKIP["W_skip"].T if skip else 0)
    read = read_finished(folder)
    torch.testing.assert_close(read.sae.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read.sae(x), rebuilt, rtol=1e-5, atol=1e-4)
    assert read.outputs == ("blocks.5.hook_mlp_out",)
    assert read.inputs == (("blocks.5.mlp.hook_in",) if transcode else read.outputs)
    write_finished(f"{tmp_path}/saelens", "saelens", read)
    assert torch.equal(read_finished(f"{tmp_path}/saelens").sae(x), read.sae(x))


@pytest.mark.parametrize(("name", "hooks"), [("layers.12", ("blocks.12.hook_resid_post",)), ("h.3", ("blocks.3.hook_resid_post",)),
                                             ("transformer.h.3.mlp", ("blocks.3.hook_mlp_out",)), ("best", ())])  # fmt: skip
def test_the_hook_is_told_by_the_folders_name(tmp_path, name, hooks):
    assert read_finished(save(tmp_path / name)).inputs == hooks


@pytest.mark.parametrize(
    ("config", "tensors", "named"),
    [
        ({"activation": "groupmax"}, TENSORS, "'groupmax'"),
        ({"signed": True}, TENSORS, "signed"),
        ({"k": F + 1}, TENSORS, f"more than the {F} latents"),
        ({"k": None}, TENSORS, "k is None"),
        ({"num_latents": F + 1}, TENSORS, "shape"),
        ({"skip_connection": True}, TENSORS, "lacks the tensor W_skip"),
        ({}, TENSORS | SKIP, "W_skip"),
        ({}, TENSORS | {"b_dec": torch.full((D,), torch.inf)}, "finite"),
        ({"transcode": True}, TENSORS, "does not name the MLP"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, config, tensors, named):
    assert named in refusal(save(tmp_path / "layers.5", tensors, **config))
