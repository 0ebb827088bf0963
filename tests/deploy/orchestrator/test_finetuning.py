"""Fine-tuning on Ray: as a phase of a sweep, and of any finished SAE by the command."""

import json
import shutil

import pytest
from support import tiny_sweep
from support.tiny_sweep import planned, quiet
from typer.testing import CliRunner

from scopemill.deploy.catalog.listing import finished_entries
from scopemill.deploy.catalog.publish import publish
from scopemill.deploy.cli.main import app
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.finetunings import finetune_jobs, read_finetuned
from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.proto.errors import InputError, SaeFormatError, SweepFileError
from scopemill.proto.layout import SweepLayout
from scopemill.trainer import load_sae

KL = {"tokens": 1024, "sequences_per_step": 4, "sequences_per_forward": 4, "checkpoint_every": 2, "cpus": 0.5, "learning_rate": 1e-3}


def test_a_sweep_fine_tunes_each_of_its_saes_in_both_arms(ray_cluster, harvests, text, tmp_path):
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text, train={"finetune": {"kl": KL}, "sparsities": [1e-3]}, harvest={"layers": [1]})
    plan = planned(tmp_path, data)
    driver = SweepDriver(plan, quiet())
    with driver.targets:
        harvests(plan)
        assert not driver.has_work(["finetune"])  # nothing is trained yet
        driver.train()
        assert driver.has_work(["finetune"])
        driver.finetune()
        state = driver.evaluate()
    assert not driver.has_work(["harvest", "train", "finetune", "evaluate"])
    records = read_finetuned(plan.bucket, finetune_jobs(plan.bucket, plan.record, state))
    assert {record.arm for record in records.values()} == {"kl", "mse"}
    kl, mse = (next(record for record in records.values() if record.arm == arm) for arm in ("kl", "mse"))
    assert kl.before == mse.before and kl.steps == 4
    assert mse.after["fvu"] < mse.before["fvu"] and kl.after["loss_spliced"] < kl.before["loss_spliced"]
    entries = [entry for entry in finished_entries(str(tmp_path / "bucket")) if "-kl-" in entry.folder]
    assert entries[0].quality.fvu == kl.after["fvu"]
    sae = load_sae(f"{tmp_path}/bucket/saes/{entries[0].folder}")
    assert sae.cfg.metadata["finetuned"]["arm"] == "kl"
    publish(plan, state)
    page = plan.bucket.read(SweepLayout("tiny").report).decode()
    assert "Fine-tuned SAEs" in page and f"{kl.after['fvu']:.4f}" in page


def test_the_command_fine_tunes_any_finished_sae_and_continues(ray_cluster, model, text, tmp_path, sae_folder):
    command = ["finetune", str(sae_folder), "--model", model.name, "--corpus", str(text), "--context-length", "64", "--held-out", "8"]
    command += [part for name, value in (KL | {"arms": "[kl]"}).items() for part in ("--set", f"{name}={value}")]
    first = CliRunner().invoke(app, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    (made,) = [path for path in sae_folder.parent.iterdir() if path.name.startswith(f"{sae_folder.name}-kl-")]
    assert {"cfg.json", "sae_weights.safetensors", "finetuned.json", "metrics.json", "provenance.json"} == {p.name for p in made.iterdir()}
    record = json.loads((made / "finetuned.json").read_text())
    assert record["steps"] == 4 and record["after"] != record["before"]
    weights = (made / "sae_weights.safetensors").read_bytes()
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert again.exit_code == 0 and (made / "sae_weights.safetensors").read_bytes() == weights
    shutil.rmtree(made)
    CliRunner().invoke(app, command, catch_exceptions=False)
    assert (made / "sae_weights.safetensors").read_bytes() == weights


@pytest.fixture
def sae_folder(lm, tmp_path):
    """A finished SAE as another package would have left it: only its two files, for raw activations."""
    import torch

    from scopemill.trainer.config.wiring import Shape
    from scopemill.trainer.formats import FinishedSae, write_finished
    from scopemill.trainer.sae.activations.topk import TopK
    from scopemill.trainer.sae.base import Sae

    sae = Sae(Shape.square(192), 64, TopK(64, 8))
    rows = torch.nn.functional.normalize(torch.randn(64, 192, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.no_grad():
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
    folder = tmp_path / "theirs"
    write_finished(
        str(folder), "saelens", FinishedSae(sae.requires_grad_(False), ("blocks.2.hook_resid_post",), ("blocks.2.hook_resid_post",))
    )
    return folder


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"sae": "nowhere"}, SaeFormatError, "is not a finished SAE"),
        ({"tokens": 10}, InputError, "less than one step of 4 sequences of 64 tokens"),
        ({"sequences_per_forward": 3}, SweepFileError, "has to be a multiple of sequences_per_forward"),
        ({"arms": "[kl, kl]"}, SweepFileError, "twice"),
        ({"arms": "[tuned]"}, SweepFileError, "arms"),
        ({"learning_rate": "fast"}, SweepFileError, "learning_rate"),
    ],
)
def test_bad_input_is_told_before_anything_starts(text, model, sae_folder, change, error, sentence):
    folder = change.get("sae", str(sae_folder))
    command = ["finetune", folder, "--model", model.name, "--corpus", str(text), "--context-length", "64"]
    settings = KL | {name: value for name, value in change.items() if name != "sae"}
    result = CliRunner().invoke(app, command + [part for name, value in settings.items() for part in ("--set", f"{name}={value}")])
    assert isinstance(result.exception, error) and sentence in str(result.exception)


def test_a_sweep_with_less_text_than_fine_tuning_takes_is_refused(text, tmp_path):
    data = tiny_sweep.sweep(str(tmp_path), text, train={"finetune": {"kl": KL | {"tokens": 10_000}}})
    with pytest.raises(SweepFileError, match="train.finetune.kl.tokens: fine-tuning takes 9,984 tokens"):
        parse_sweep(data, "sweep.yaml")
