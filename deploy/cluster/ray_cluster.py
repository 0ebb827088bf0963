"""Connect to a Ray cluster or start a local one.

Also check that a sweep's actors fit.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scopemill.proto.errors import InputError

OBJECT_STORE_BYTES = 128 * 2**20  # for plans and receipts only: activations never travel through the object store


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster of ``RAY_ADDRESS``, or start a local one.

    A local cluster lasts for the length of the block. Ray sets ``RAY_ADDRESS`` inside a job. A connection that exists already is
    used as it is.
    """
    if ray.is_initialized():
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
    """Start a cluster on this machine, by default with all its CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without a GPU, Ray would warn that the default of its GPU masking will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's processes listen on every interface: Ray 2.60 replaces a loopback address of a node by the machine's own. For such a cluster Ray
    # makes a token, and asks for it.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


class Needs(Protocol):
    """Describe what a section of the sweep file reserves for each of its actors."""

    @property
    def cpus(self) -> float: ...
    @property
    def gpus(self) -> float: ...
    @property
    def labels(self) -> dict[str, str]: ...


def needs(config: Needs) -> dict[str, Any]:
    """Return the options of an actor that Ray may put on any fitting node."""
    return {"num_cpus": config.cpus, "num_gpus": config.gpus, "label_selector": config.labels}


def on_node(node: str) -> dict[str, Any]:
    """Return the options of an actor that must run on the given node."""
    # With soft=True Ray 2.60 puts an actor that takes no CPU on any node, even if the given one is there.
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def room_for(config: Needs) -> int:
    """Return how many actors of a section fit into the cluster at once.

    The number is at least 1. Where there is room for none, one actor waits for its place.
    """
    return max(1, sum(_room(node["Resources"], config) for node in _labelled(_nodes(), config)))


def check_place(section: str, config: Needs) -> None:
    """Raise InputError if no node could ever run an actor of this section.

    Ray would wait without a word.
    """
    nodes = _nodes()
    labelled = _labelled(nodes, config)
    wanted = ", ".join(f"{name}: {value}" for name, value in config.labels.items())
    if not labelled:
        present = sorted({f"{name}: {value}" for node in nodes for name, value in node["Labels"].items() if not name.startswith("ray.io/")})
        raise InputError(
            f"{section}.labels: none of the cluster's {len(nodes)} nodes has {{{wanted}}}; the nodes have "
            f"{', '.join(present) or 'no labels'}: "
            f"start a node with this label (ray start --labels), or leave {section}.labels out"
        )
    if not any(_room(node["Resources"], config) for node in labelled):
        with_label = f" with {{{wanted}}}" if wanted else ""
        raise InputError(
            f"{section}: no node{with_label} of the cluster has {config.cpus:g} CPUs and {config.gpus:g} GPUs, which each process of this "
            f"section needs: lower {section}.cpus or {section}.gpus, or add a node"
        )


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _labelled(nodes: list[dict[str, Any]], config: Needs) -> list[dict[str, Any]]:
    return [node for node in nodes if config.labels.items() <= node["Labels"].items()]


def _room(resources: dict[str, float], config: Needs) -> int:
    limits = [resources.get(kind, 0) / need for kind, need in (("CPU", config.cpus), ("GPU", config.gpus)) if need]
    return int(min(limits, default=1) + 1e-9)
