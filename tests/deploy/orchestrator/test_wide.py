"""Wide SAEs on Ray, sharded over several trainers: killed ranks, and settings that are refused."""

import os
import shutil
import signal
from collections.abc import Collection
from pathlib import Path

import pytest
import ray
from support import tiny_sweep
from support.tiny_sweep import planned, quiet
from support.wide import finish

from scopemill.activation_server.actor import Whereabouts
from scopemill.activation_server.server import ActivationServer
from scopemill.deploy.cost.estimate import readers, receivers
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.orchestrator.group import Group, assignment_of
from scopemill.deploy.orchestrator.training import Training
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.errors import InputError, SweepFileError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training import checkpoint

STEPS, EVERY = 300, 20


def wide(folder: Path, text: Path, **train) -> SweepPlan:
    """Plan two SAEs of one stream: the first in one process, the second sharded over two."""
    folder.mkdir(exist_ok=True)
    train = {
        "widths": [64, 256], "sparsities": [1e-3], "latents_per_trainer": 150, "at_once": 3, "tokens": 256 * STEPS,
        "checkpoint_every": EVERY,
    } | train  # fmt: skip
    data = tiny_sweep.sweep(str(folder / "bucket"), text, harvest={"layers": [3]}, train=train)
    return planned(folder, data | {"file_sd": str(folder / "targets.json")})


def test_a_killed_rank_ends_the_others_and_the_sae_resumes_to_the_same_bits(tmp_path, text, harvests, monkeypatch):
    """Kill a follower, then the leader as soon as it is called again; compare with undisturbed trainers in threads."""
    plan, groups, struck = wide(tmp_path, text, retries=2), [], []
    harvests(plan)
    (part,), (alone, divided) = plan.passes, plan.saes
    call = Training._call

    def kill(group: Group, rank: int) -> None:
        struck.append(ray.get(group.slots[rank].actor.__ray_call__.remote(lambda self: os.getpid())))
        os.kill(struck[-1], signal.SIGKILL)

    def called(self, group: Group, where: Whereabouts) -> None:
        call(self, group, where)
        groups.extend([group] if len(group.slots) == 2 else [])
        if len(groups) == 2 and len(struck) == 1:
            kill(group, 0)

    def strike(training: Collection[str]) -> None:
        if not struck and checkpoint.steps_of(plan.bucket, divided.layout):
            kill(groups[0], 1)

    monkeypatch.setattr(Training, "_call", called)
    driver = SweepDriver(plan, quiet())
    training = Training(part, plan.read_state().passes[0], part.saes, driver.targets, quiet(), driver.desk)
    outcomes = training.run(strike)
    assert len(struck) == 2 and len(groups) == 3
    assert [(outcome.state, outcome.tries) for outcome in outcomes.values()] == [("finished", 1), ("finished", 3)]
    assert all(plan.bucket.exists(sae.layout.config) for sae in plan.saes)

    undisturbed = Bucket(str(tmp_path / "undisturbed"))
    shutil.copytree(tmp_path / "bucket" / "activations", tmp_path / "undisturbed" / "activations")
    server = ActivationServer(undisturbed, plan.config.server)
    for sae, parts in ((alone, 1), (divided, 2)):
        manifest = plan.read_state().passes[0].harvested_manifest()
        assert finish(undisturbed, assignment_of(part, manifest, sae), server.address, parts) == STEPS
        place = sae.layout.checkpoint(STEPS)
        for path in (place.weights, place.optimizer):
            assert plan.bucket.read(path) == undisturbed.read(path)
    server.stop()


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (
            {"latents_per_trainer": 50},
            "256 latents is sharded over 6 trainers, and at_once is 3: raise at_once or latents_per_trainer",
        ),
        ({"resample_every": 20}, "sharded over 2 trainers, and a sharded SAE is not resampled: leave resample_every out"),
        ({"gpus": 0.5}, "sharded over 2 trainers, and its trainers cannot share a GPU: gpus .0.5. has to be a whole number"),
        ({"variants": [{"architecture": "clt"}]}, "sharded over 2 trainers, and a clt cannot be sharded: raise latents_per_trainer to 256"),
        ({"latents_per_trainer": 0}, "train.latents_per_trainer"),
        ({"halving": {"rungs": [0.5]}, "sparsities": [1, 2, 3]}, "at_once is 3: raise at_once to 6"),
    ],
)
def test_an_sae_that_cannot_be_sharded_is_refused_before_any_work(tmp_path, text, train, sentence):
    with pytest.raises(SweepFileError, match=sentence):
        wide(tmp_path, text, **train)


def test_a_cluster_without_room_for_all_ranks_is_refused(tmp_path, text, ray_cluster):
    plan = wide(tmp_path, text, cpus=5)
    with pytest.raises(InputError, match="256 latents is divided over 2 trainers, and the cluster has room for 1, of 5 CPUs"):
        SweepDriver(plan, quiet()).check_room(["harvest", "train"])
    SweepDriver(plan, quiet()).check_room(["harvest", "evaluate"])


def test_sharding_changes_no_saes_folder(tmp_path, text):
    divided, whole = wide(tmp_path, text), wide(tmp_path, text, latents_per_trainer=None)
    assert [sae.layout.root for sae in divided.saes] == [sae.layout.root for sae in whole.saes]


def test_a_wide_sae_takes_one_copy_of_its_stream_and_others_wait_for_its_slots(tmp_path, text):
    plan = wide(tmp_path, text, sparsities=[1e-3, 2e-3, 3e-3])
    (part,) = plan.passes
    assert part.trainers(plan.saes) == 3 + 3 * 2
    assert (len(readers(plan)), len(receivers(plan))) == (4, 6)
