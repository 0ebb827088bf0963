"""What tests share: the carried language model, a bucket, one Ray cluster, one S3 server.

Fixtures import what is theirs alone when they are asked for, so that tests of pure parts start without Ray, S3 and transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

# Read when Triton is first imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from scopemill.harvester.config import ModelConfig
from scopemill.proto.storage.bucket import Bucket

if TYPE_CHECKING:
    from support.tiny_sweep import Harvests

    from scopemill.harvester.language_model.card import ModelCard
    from scopemill.harvester.language_model.model import LanguageModel

# Small products gain nothing from threads, and where other work has the cores they lose much.
torch.set_num_threads(1)


# Fixtures that start a process or load a language model: `make test-fast` leaves their tests to `make test`.
SERVICES = {"ray_cluster", "s3_url", "harvests", "model", "card", "lm"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "head" in getattr(item, "fixturenames", ()):  # of two nodes, with the Jobs API
            item.add_marker(pytest.mark.cluster)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if SERVICES & set(getattr(item, "fixturenames", ())) or any(
            isinstance(parameter, str) and parameter == "s3" for parameter in parameters
        ):
            item.add_marker(pytest.mark.services)


@pytest.fixture
def bucket(tmp_path) -> Bucket:
    return Bucket(str(tmp_path / "bucket"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    from support.browser import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def model() -> ModelConfig:
    """The demo's language model: Gemma-2 architecture, 6 layers, d = 192."""
    return ModelConfig(name=str(files("scopemill.deploy.demo") / "gemma-2-stdlib"))


@pytest.fixture(scope="session")
def card(model) -> ModelCard:
    from scopemill.harvester.language_model.describe import describe

    return describe(model)


@pytest.fixture(scope="session")
def lm(model) -> LanguageModel:
    from scopemill.harvester.language_model.model import LanguageModel

    return LanguageModel(model)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """The tiny sweep's corpus. Its path is a part of what a harvest is, so tests that share harvests share it."""
    from support import tiny_sweep

    return tiny_sweep.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def harvests(tmp_path_factory, ray_cluster) -> Harvests:
    """For tests of what comes after the harvest: those that ask for the same share one."""
    from support.tiny_sweep import Harvests

    return Harvests(tmp_path_factory.mktemp("harvests"))


@pytest.fixture(scope="session")
def ray_cluster(s3_url) -> Iterator[None]:
    """One local cluster for all tests that need one; it has more CPUs than the machine so that actors need not wait.

    Its workers inherit the environment of the moment it starts, so the S3 server has to be in there by then.
    """
    import ray

    from scopemill.deploy.cluster.ray_cluster import local_cluster

    with local_cluster(num_cpus=8):
        yield
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory) -> Iterator[str]:
    """``s3://<bucket>`` on a real S3 server that this process, and every one that it starts, finds through its environment."""
    import s3fs
    from support.s3_server import running_s3_server

    with running_s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # one made before would still talk to where the environment pointed then
        s3fs.S3FileSystem().mkdir("mill")
        yield "s3://mill"
        s3fs.S3FileSystem.clear_instance_cache()
