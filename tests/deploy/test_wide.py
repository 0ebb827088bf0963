"""Wide SAEs on Ray: latents in several trainer processes, beside SAEs in one; a process that is killed; what cannot be divided."""

import os
import shutil
import signal
from collections.abc import Collection
from pathlib import Path

import pytest
import ray
import safetensors.torch
import tiny_sweep
import torch
from tiny_sweep import planned, quiet

from scopemill.deploy.cost import readers, receivers
from scopemill.deploy.driver import SweepDriver
from scopemill.deploy.plan import SweepPlan
from scopemill.deploy.training import Group, Training
from scopemill.proto.errors import InputError, SweepFileError
from scopemill.trainer import checkpoint

STEPS, EVERY = 240, 80


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny_sweep.write_text(tmp_path_factory.mktemp("text"))


def wide(folder: Path, text: Path, **train) -> SweepPlan:
    """Of one stream an SAE in one process and one in two."""
    folder.mkdir(exist_ok=True)
    train = {
        "widths": [64, 256], "sparsities": [1e-3], "latents_per_trainer": 150, "at_once": 3, "tokens": 256 * STEPS,
        "checkpoint_every": EVERY,
    } | train  # fmt: skip
    data = tiny_sweep.sweep(str(folder / "bucket"), text, harvest={"layers": [3]}, train=train)
    return planned(folder, data | {"file_sd": str(folder / "targets.json")})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text, ray_cluster):
    """The sweep's own end, in two processes and in one."""
    ends = {}
    folder = tmp_path_factory.mktemp("wide")
    for name, train in (("two", {}), ("one", {"latents_per_trainer": None})):
        if ends:
            copied(folder / "two", folder / name)
        plan = wide(folder / name, text, **train)
        SweepDriver(plan, quiet()).harvest()
        SweepDriver(plan, quiet()).train()
        ends[name] = plan
    return ends


def copied(folder: Path, into: Path) -> None:
    """What was harvested there."""
    shutil.copytree(folder / "bucket" / "activations", into / "bucket" / "activations")


def weights(plan: SweepPlan) -> list[bytes]:
    return [plan.bucket.read(sae.layout.checkpoint(STEPS).weights) for sae in plan.saes]


def test_an_sae_in_two_processes_is_the_one_of_one_process(undisturbed):
    plans = undisturbed["two"], undisturbed["one"]
    assert all(plan.bucket.exists(sae.layout.config) for plan in plans for sae in plan.saes)
    assert [sae.layout.root for sae in plans[0].saes] == [sae.layout.root for sae in plans[1].saes], "the same SAEs at the same places"
    (narrow, divided), (same, whole) = (weights(plan) for plan in plans)
    assert narrow == same
    mine, its = safetensors.torch.load(divided), safetensors.torch.load(whole)
    assert mine.keys() == its.keys()
    for name, tensor in its.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=2e-2 * float(tensor.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_all_of_its_sae_which_goes_on_at_its_checkpoint_to_the_same_bits(
    tmp_path, undisturbed, text, monkeypatch, rank
):
    copied(Path(undisturbed["two"].config.bucket).parent, tmp_path)
    plan, groups, struck = wide(tmp_path, text), [], []
    call = Training._call
    monkeypatch.setattr(Training, "_call", lambda self, group, where: groups.append(group) or call(self, group, where))

    def strike(training: Collection[str]) -> None:
        divided = next((group for group in groups if len(group.slots) > 1), None)
        if divided and not struck and checkpoint.steps_of(plan.bucket, plan.saes[1].layout):
            struck.append(ray.get(divided.slots[rank].actor.__ray_call__.remote(lambda self: os.getpid())))
            os.kill(struck[0], signal.SIGKILL)

    (part,) = plan.passes
    endings = Training(part, part.manifest, part.saes, SweepDriver(plan, quiet()).targets, quiet()).run(strike)
    assert struck and [ending.state for ending in endings.values()] == ["finished"] * 2
    assert endings[plan.saes[1].name].tries == 2 and len([group for group in groups if isinstance(group, Group)]) == 3
    assert weights(plan) == weights(undisturbed["two"])


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (
            {"latents_per_trainer": 50},
            "256 latents is divided over 6 trainers, and at_once is 3: raise it, or latents_per_trainer",
        ),
        ({"resample_every": 20}, "divided over 2 trainers, which draw no latents anew: leave resample_every out"),
        ({"gpus": 0.5}, "divided over 2 trainers, which cannot share a GPU: gpus .0.5. has to be a whole number"),
        ({"variants": [{"architecture": "clt"}]}, "divided over 2 trainers, which a clt cannot be: raise latents_per_trainer to 256"),
        ({"latents_per_trainer": 0}, "train.latents_per_trainer"),
        ({"halving": {"rungs": [0.5]}, "sparsities": [1, 2, 3]}, "at_once is 3: raise it to 6"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_any_work(tmp_path, text, train, sentence):
    with pytest.raises(SweepFileError, match=sentence):
        wide(tmp_path, text, **train)


def test_a_cluster_without_room_for_all_parts_is_refused(tmp_path, text, ray_cluster):
    plan = wide(tmp_path, text, cpus=5)
    with pytest.raises(InputError, match="256 latents is divided over 2 trainers, and the cluster has room for 1, of 5 CPUs"):
        SweepDriver(plan, quiet()).check_room(["harvest", "train"])
    SweepDriver(plan, quiet()).check_room(["harvest", "evaluate"])


def test_a_wide_sae_takes_one_copy_of_its_stream_and_others_wait_for_its_slots(tmp_path, text):
    plan = wide(tmp_path, text, sparsities=[1e-3, 2e-3, 3e-3])
    (part,) = plan.passes
    assert part.trainers(plan.saes) == 3 + 3 * 2
    assert (len(readers(plan)), len(receivers(plan))) == (4, 6)
