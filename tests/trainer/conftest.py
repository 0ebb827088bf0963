"""What tests of trainers share: a server of the synthetic dataset."""

import pytest
from support.synthetic import make_dataset

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer


@pytest.fixture
def server(bucket):
    make_dataset(bucket, dtype="bfloat16")
    running = ActivationServer(bucket, ServerConfig(window_mib=1))
    yield running
    running.stop()
