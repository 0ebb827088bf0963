"""Sections that fit on no node are refused before work starts; `test_jobs.py` checks placement on a real cluster of two nodes."""

from pathlib import Path

import pytest
from support import tiny_sweep

from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.proto.errors import InputError

PHASES = ("harvest", "train", "evaluate")


def driver_of(folder: Path, text: Path, **sections) -> SweepDriver:
    return SweepDriver(tiny_sweep.planned(folder, tiny_sweep.sweep(str(folder / "bucket"), text, **sections)), tiny_sweep.quiet())


@pytest.mark.parametrize("section", ["harvest", "train", "evaluation"])
def test_a_label_that_no_node_has_is_refused_before_anything_is_harvested(tmp_path, text, ray_cluster, section):
    driver = driver_of(tmp_path, text, **{section: {"labels": {"room": "b"}}})
    with pytest.raises(InputError, match=rf"{section}\.labels: none of the cluster's 1 nodes has {{room: b}}; the nodes have no labels"):
        driver.check_nodes(PHASES)


@pytest.mark.parametrize(("needs", "told"), [({"cpus": 50}, "50 CPUs and 0 GPUs"), ({"gpus": 1}, r"[\d.]+ CPUs and 1 GPUs")])
def test_a_process_that_fits_on_no_node_is_refused(tmp_path, text, ray_cluster, needs, told):
    driver = driver_of(tmp_path, text, train=needs)
    with pytest.raises(InputError, match=f"train: no node of the cluster has {told}.*lower train.cpus or train.gpus"):
        driver.check_nodes(PHASES)


def test_only_phases_with_work_left_need_a_node(tmp_path, text, ray_cluster):
    driver = driver_of(tmp_path, text, train={"labels": {"room": "b"}}, evaluation={"cpus": 50})
    driver.check_nodes(["harvest"])
    driver.check_nodes(["evaluate"])  # there is no checkpoint yet
    rolling = {"labels": {"room": "b"}, "rolling": 3}
    driver = driver_of(tmp_path, text, harvest=rolling, train={"checkpoint_every": 8})
    with pytest.raises(InputError, match="harvest.labels"):
        driver.check_nodes(["train"])  # its shards are made while it trains
