"""dictionary_learning's ae.pt: the function that its classes compute, and no code of a pickle's."""

import json
import os
from pathlib import Path

import pytest
import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.formats import read_finished, write_finished

D, F, K = 6, 10, 3
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


LINEAR = {"encoder.weight": random(F, D), "encoder.bias": random(F), "decoder.weight": random(D, F)}
MATRICES = {"W_enc": random(D, F), "b_enc": random(F), "W_dec": random(F, D), "b_dec": random(D)}
COUNT = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
FILES = {
    "AutoEncoder": LINEAR | {"bias": random(D)},
    "AutoEncoderNew": LINEAR | {"decoder.bias": random(D)},
    "GatedAutoEncoder": {"encoder.weight": random(F, D), "decoder.weight": random(D, F), "decoder_bias": random(D), "r_mag": random(F),
                         "gate_bias": random(F), "mag_bias": random(F)},
    "JumpReluAutoEncoder": MATRICES | {"threshold": random(F).abs()},
    "AutoEncoderTopK": LINEAR | {"b_dec": random(D)} | COUNT,
    "BatchTopKSAE": LINEAR | {"b_dec": random(D)} | COUNT,
    "MatryoshkaBatchTopKSAE": MATRICES | COUNT | {"group_sizes": torch.tensor([4, 6])},
}  # fmt: skip


def save(folder: Path, name: str, tensors: object = None, **trainer) -> str:
    """A folder as the package's training leaves it."""
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "k": K, "layer": 8, "lm_name": "EleutherAI/pythia-70m-deduped",
               "submodule_name": "resid_post_layer_8"} | trainer  # fmt: skip
    folder.mkdir(exist_ok=True)
    torch.save(FILES.get(name) if tensors is None else tensors, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return str(folder)


def by_hand(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and reconstruction by the classes' own formulas."""
    t = FILES[name]
    encoder = t["encoder.weight"].T if "encoder.weight" in t else t["W_enc"]
    decoder = t["decoder.weight"].T if "decoder.weight" in t else t["W_dec"]
    bias = next(t[key] for key in ("bias", "decoder.bias", "decoder_bias", "b_dec") if key in t)
    if name not in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        x = x - bias
    if name == "GatedAutoEncoder":
        latents = (x @ encoder + t["gate_bias"] > 0) * (t["r_mag"].exp() * (x @ encoder) + t["mag_bias"]).relu()
    else:
        pre = x @ encoder + t.get("encoder.bias", t.get("b_enc"))
        latents = pre.relu()
        if name == "AutoEncoderTopK":
            latents = latents * (pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K])
        elif "threshold" in t:
            latents = latents * (pre > t["threshold"])
    return latents, latents @ decoder + bias


@pytest.mark.parametrize("name", FILES)
def test_each_class_is_read_as_the_function_that_it_computes(tmp_path, name):
    read = read_finished(save(tmp_path, name))
    x = 2 * random(300, D)
    latents, rebuilt = by_hand(name, x)
    torch.testing.assert_close(read.sae.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read.sae(x), rebuilt, rtol=1e-5, atol=1e-4)
    assert read.inputs == read.outputs == ("blocks.8.hook_resid_post",)
    assert read.model == "EleutherAI/pythia-70m-deduped" and read.metadata == {"context_size": 128}
    write_finished(f"{tmp_path}/saelens", "saelens", read)
    assert torch.equal(read_finished(f"{tmp_path}/saelens").sae(x), read.sae(x))


def test_a_hook_that_the_config_does_not_say_is_left_open(tmp_path):
    assert read_finished(save(tmp_path, "AutoEncoder", submodule_name=None)).inputs == ()
    assert read_finished(save(tmp_path, "AutoEncoder", submodule_name="mlp_out_layer_2", layer=2)).inputs == ("blocks.2.hook_mlp_out",)


class Code:
    """What a hostile file would hold."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def refusal(folder: str) -> str:
    with pytest.raises(SaeFormatError) as caught:
        read_finished(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, zipped):
    folder = save(tmp_path / "sae", "AutoEncoder")
    hostile = FILES["AutoEncoder"] | {"more": Code(f"touch {tmp_path}/ran")}
    torch.save(hostile, tmp_path / "sae" / "ae.pt", _use_new_zipfile_serialization=zipped)
    assert ("may be code" if zipped else "not a zip file") in refusal(folder)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "sae" / "ae.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the file would have done nothing anyway"


@pytest.mark.parametrize(
    ("name", "tensors", "trainer", "named"),
    [
        ("IdentityDict", LINEAR, {}, "'IdentityDict' is not known; known are AutoEncoder"),
        (["AutoEncoder"], LINEAR, {}, "['AutoEncoder']"),
        ("AutoEncoder", LINEAR, {}, "lacks the tensor bias"),
        ("AutoEncoder", FILES["AutoEncoder"] | {"more": random(1)}, {}, "more"),
        ("AutoEncoder", FILES["AutoEncoder"] | {"bias": torch.full((D,), torch.nan)}, {}, "finite"),
        ("AutoEncoder", None, {"dict_size": F + 1}, "shape"),
        ("AutoEncoder", None, {"activation_dim": "6"}, "activation_dim is '6'"),
        ("AutoEncoder", [random(2)], {}, "not a mapping"),
        ("AutoEncoder", {"bias": 3}, {}, "not a mapping"),
        ("AutoEncoderTopK", None, {"k": F + 1}, f"k is {F + 1}, more than the {F} latents"),
        ("AutoEncoderTopK", None, {"k": K + 1}, f"k is {K}, and config.json says {K + 1}"),
        ("BatchTopKSAE", FILES["BatchTopKSAE"] | {"threshold": torch.tensor(-1.0)}, {}, "negative"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, tensors, trainer, named):
    assert named in refusal(
        save(tmp_path, name, tensors, **trainer) if isinstance(name, str) else save(tmp_path, "x", tensors, dict_class=name)
    )


@pytest.mark.parametrize("data", [b"", b"no pickle", b"PK\x03\x04 no zip"])
def test_a_damaged_file_is_refused(tmp_path, data):
    folder = save(tmp_path, "AutoEncoder")
    (tmp_path / "ae.pt").write_bytes(data)
    assert "ae.pt" in refusal(folder)
