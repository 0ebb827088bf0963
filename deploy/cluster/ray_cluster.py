"""Ray: the cluster that we are in, or one on this machine for the length of a command."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scopemill.proto.config import LOOPBACK
from scopemill.proto.errors import InputError

OBJECT_STORE_BYTES = 128 * 2**20  # plans and receipts only: activations never travel through it


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster of ``RAY_ADDRESS`` (set inside a Ray job), else have a local one for as long as the block runs."""
    if ray.is_initialized():  # the caller's
        yield
    elif "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
    else:
        with local_cluster():
            yield


@contextmanager
def local_cluster(num_cpus: int | None = None) -> Iterator[None]:
    """A cluster on this machine, on loopback, with as many CPUs as the machine has if not told otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without a GPU, Ray would warn about a default of its masking that it will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Some of its ports listen on every interface; Ray asks for a token of its own making for a cluster started so.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=LOOPBACK,
    )
    try:
        yield
    finally:
        ray.shutdown()


class Needs(Protocol):
    """What a section of the sweep file says of its actors."""

    @property
    def cpus(self) -> float: ...
    @property
    def gpus(self) -> float: ...
    @property
    def labels(self) -> dict[str, str]: ...


def needs(config: Needs) -> dict[str, Any]:
    """The options of an actor that Ray is to find a place for."""
    return {"num_cpus": config.cpus, "num_gpus": config.gpus, "label_selector": config.labels}


def on_node(node: str) -> dict[str, Any]:
    """The options of an actor that belongs on a node, and cannot be elsewhere."""
    # With soft=True Ray 2.60 puts an actor that takes no CPU on any node, though this one is there.
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def room_for(config: Needs) -> int:
    """How many such actors run at once in the cluster; at least one, which then waits for its place."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and config.labels.items() <= node["Labels"].items()]
    return max(1, sum(_room(have, config) for have in nodes))


def check_place(section: str, config: Needs) -> None:
    """InputError if no node that is there could ever run an actor of this section of the sweep file: Ray would wait without a word."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    labelled = [node for node in nodes if config.labels.items() <= node["Labels"].items()]
    asked = ", ".join(f"{name}: {value}" for name, value in config.labels.items())
    if not labelled:
        told = sorted({f"{name}: {value}" for node in nodes for name, value in node["Labels"].items() if not name.startswith("ray.io/")})
        raise InputError(
            f"{section}.labels: none of the cluster's {len(nodes)} nodes has {{{asked}}}; there are {', '.join(told) or 'no labels'}: "
            "give a node its label where it is started (ray start --labels), or leave it out"
        )
    if not any(_room(node["Resources"], config) for node in labelled):
        with_label = f" with {{{asked}}}" if asked else ""
        raise InputError(
            f"{section}: no node{with_label} of the cluster has {config.cpus:g} CPUs and {config.gpus:g} GPUs, which one process of this "
            f"section takes: lower {section}.cpus or {section}.gpus, or add a node"
        )


def _room(have: dict[str, float], config: Needs) -> int:
    limits = [have.get(kind, 0) / need for kind, need in (("CPU", config.cpus), ("GPU", config.gpus)) if need]
    return int(min(limits, default=1) + 1e-9)
