"""Keys with a real CURVE handshake: who is on the allow-list is served, nobody else is, and without keys there is loopback only."""

import shutil
import time
from pathlib import Path

import pytest
import zmq.auth
from pydantic import ValidationError
from support.synthetic import make_dataset

from scopemill.activation_server.client import StreamClient
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.keys import make_keys
from scopemill.activation_server.server import TICK_SECONDS, ActivationServer
from scopemill.proto.errors import Conflict, InputError, ServerGone
from scopemill.proto.wire import StreamSpec

HOOK = "blocks.0.hook_resid_post"
STREAM = StreamSpec("synthetic", (HOOK,), 16, 3, 2)


@pytest.fixture
def keys(tmp_path) -> Path:
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def guarded(bucket, keys):
    make_dataset(bucket)
    server = ActivationServer(bucket, ServerConfig(window_mib=1, keys=str(keys)))
    yield server
    server.stop()


def served(server: ActivationServer, keys: Path | None) -> int:
    client = StreamClient(server.address, STREAM, "a", 0, 8, connect_seconds=1.0, keys=str(keys) if keys else None)
    try:
        return sum(1 for _ in client)
    finally:
        client.close()


def test_who_is_on_the_allow_list_is_served_and_strangers_are_not(guarded, keys, tmp_path):
    assert served(guarded, keys) == 8
    make_keys(tmp_path / "others")
    shutil.copy(keys / "server.key", tmp_path / "others" / "server.key")  # it knows the server, the server not it
    for stranger in (tmp_path / "others", None):
        with pytest.raises(ServerGone, match="no activation server answers at tcp://.* keys?"):
            served(guarded, stranger)
    assert served(guarded, keys) == 8


def test_a_trainer_answers_no_server_but_its_own(guarded, keys, tmp_path):
    make_keys(tmp_path / "others")
    shutil.copy(tmp_path / "others" / "server.key", keys / "server.key")
    with pytest.raises(ServerGone):
        served(guarded, keys)


def test_a_key_added_to_the_allow_list_is_served_at_once(guarded, keys, tmp_path):
    make_keys(tmp_path / "others")
    shutil.copy(keys / "server.key", tmp_path / "others" / "server.key")
    assert served(guarded, keys) == 8
    shutil.copy(tmp_path / "others" / "trainer.key", keys / "allowed" / "another.key")
    assert served(guarded, tmp_path / "others") == served(guarded, keys) == 8


def test_a_key_taken_out_of_the_allow_list_is_served_no_more_and_others_are(guarded, keys, tmp_path):
    """Neither a new connection nor the one that is open: it gets no further batch, and is told why."""
    make_keys(tmp_path / "others")
    shutil.copy(keys / "server.key", tmp_path / "others" / "server.key")
    shutil.copy(tmp_path / "others" / "trainer.key", keys / "allowed" / "another.key")
    open_one = StreamClient(guarded.address, STREAM, "b", 0, 8, connect_seconds=5.0, keys=str(tmp_path / "others"))
    try:
        batches = iter(open_one)
        next(batches)
        (keys / "allowed" / "another.key").unlink()
        time.sleep(3 * TICK_SECONDS)
        with pytest.raises(InputError, match="does not allow this trainer's key any more"):
            while True:
                next(batches)
    finally:
        open_one.close()
    with pytest.raises(ServerGone):
        served(guarded, tmp_path / "others")
    assert served(guarded, keys) == 8


def test_a_folder_that_every_user_can_write_is_refused(bucket, keys):
    for folder in (keys / "allowed", keys):
        folder.chmod(0o777)
        with pytest.raises(InputError, match=f"server.keys: every user of this machine can write in {folder}, .*: run chmod o-w"):
            ActivationServer(bucket, ServerConfig(keys=str(keys)))
        if folder == keys:
            with pytest.raises(InputError, match="every user of this machine can write"):
                StreamClient("tcp://127.0.0.1:9", STREAM, "a", 0, 8, keys=str(keys))
        folder.chmod(0o700)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "node-7", "*", "::"])
def test_beyond_loopback_a_server_without_keys_is_refused(host):
    with pytest.raises(ValidationError, match="can be reached by other machines: .*`scopemill keys DIR`"):
        ServerConfig(host=host)
    ServerConfig(host=host, keys="keys")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_on_loopback_no_keys_are_needed(host):
    ServerConfig(host=host)


def test_secret_keys_are_for_their_owner_only_and_never_replaced(keys):
    for name in ("server", "trainer"):
        assert (keys / f"{name}.key_secret").stat().st_mode & 0o777 == 0o600
        assert zmq.auth.load_certificate(keys / f"{name}.key")[1] is None
    before = {path: path.read_bytes() for path in keys.rglob("*.key*")}
    with pytest.raises(Conflict, match="already holds keys"):
        make_keys(keys)
    assert {path: path.read_bytes() for path in keys.rglob("*.key*")} == before


def test_keys_that_cannot_be_written_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"keys cannot be written into {tmp_path}/file/keys, Not a directory: name a folder"):
        make_keys(tmp_path / "file" / "keys")


@pytest.mark.parametrize("missing", ["server.key_secret", "allowed/trainer.key"])
def test_a_server_whose_keys_are_not_whole_does_not_start(bucket, keys, missing):
    (keys / missing).unlink()
    with pytest.raises(InputError, match=f"server.keys: .*{missing.split('/')[0]}.*`scopemill keys DIR`"):
        ActivationServer(bucket, ServerConfig(keys=str(keys)))


@pytest.mark.parametrize("missing", ["trainer.key_secret", "server.key"])
def test_a_trainer_whose_keys_are_not_whole_says_which(keys, missing):
    (keys / missing).unlink()
    with pytest.raises(InputError, match=f"server.keys: .*{missing} is not a valid key file"):
        StreamClient("tcp://127.0.0.1:9", STREAM, "a", 0, 8, keys=str(keys))
