"""The user's own folder, and files that replace others without following a planted link."""

import os
import tempfile

import pytest

from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.proto import metrics
from scopemill.proto.errors import InputError
from scopemill.proto.runtime import replace_file, runtime_folder


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A temporary directory of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_the_users_own(shared):
    assert runtime_folder() == runtime_folder() == shared / f"scopemill-{os.getuid()}"
    runtime_folder().chmod(0o777)
    assert runtime_folder().stat().st_mode & 0o777 == 0o700
    assert metrics.targets_folder() == runtime_folder() / "targets"


def test_a_folder_of_another_or_a_planted_link_is_refused(shared, monkeypatch):
    elsewhere = shared / "elsewhere"
    elsewhere.mkdir()
    (shared / f"scopemill-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is not a folder of yours.*: delete it, or set TMPDIR"):
        runtime_folder()
    (shared / "scopemill-4711").mkdir()  # made by whom runs this test
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(InputError, match="scopemill-4711 is not a folder of yours"):
        runtime_folder()


def test_a_planted_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    victim, place = tmp_path / "victim", tmp_path / "sweep.json"
    victim.write_text("mine")
    for link in (place, tmp_path / "sweep.tmp", tmp_path / "sweep.json.tmp"):
        link.symlink_to(victim)
    replace_file(place, "[]")
    assert victim.read_text() == "mine" and place.read_text() == "[]" and not place.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.json", "sweep.json.tmp", "sweep.tmp", "victim"]


def test_a_sweep_goes_on_where_its_metrics_cannot_be_listed(shared, tmp_path):
    (tmp_path / "file").write_text("")
    targets = Targets(tmp_path / "file" / "targets.json", "s")
    targets.set("trainer", ["127.0.0.1:9"])
    assert targets.places.startswith("no file (")
    (shared / f"scopemill-{os.getuid()}").write_text("not a folder")
    targets = Targets(None, "s")
    targets.set("trainer", ["127.0.0.1:9"])
    assert "no file (" in targets.places
