"""What tests share: the carried language model, a bucket, one Ray cluster, one S3 server."""

from collections.abc import Iterator
from importlib.resources import files

import pytest
import ray
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model import LanguageModel, ModelCard, describe
from scopemill.proto.bucket import Bucket


@pytest.fixture
def bucket(tmp_path) -> Bucket:
    return Bucket(str(tmp_path / "bucket"))


@pytest.fixture(scope="session")
def model() -> ModelConfig:
    """The demo's language model: Gemma-2 architecture, 6 layers, d = 192."""
    return ModelConfig(name=str(files("scopemill.deploy.demo") / "model"))


@pytest.fixture(scope="session")
def card(model) -> ModelCard:
    return describe(model)


@pytest.fixture(scope="session")
def lm(model) -> LanguageModel:
    return LanguageModel(model)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for all tests that need one; it has more CPUs than the machine so that actors need not wait."""
    from scopemill.deploy.cluster import local_cluster

    with local_cluster(num_cpus=8):
        yield
    assert not ray.is_initialized()
