"""Evidence pulled with its SAE: the same bytes, checked, once."""

import numpy as np
import pytest
from support.exported import labelled
from support.finished_saes import finished_sae
from typer.testing import CliRunner

from scopemill.deploy.catalog import evidence_copy
from scopemill.deploy.catalog.pull import pull
from scopemill.deploy.cli.main import app
from scopemill.evaluator.evidence.reader import evidence_of
from scopemill.proto.errors import ScopemillError
from scopemill.proto.storage.bucket import Bucket

SAE = "tiny/blocks.3.hook_resid_post/width_30/jumprelu/0.5-a"


@pytest.fixture
def bucket(tmp_path):
    labelled(tmp_path / "bucket" / "saes" / SAE, finished_sae("jumprelu", model="tiny"))
    return tmp_path / "bucket"


def files(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_evidence_and_labels_come_along_when_asked_for(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_copy, "PIECE_BYTES", 1000)  # in many pieces
    (bucket / "saes" / SAE / "evidence/0123456789abcdef/work/parts").mkdir(parents=True)
    (bucket / "saes" / SAE / "evidence/0123456789abcdef/work/parts/left").write_text("over")
    assert pull(str(bucket), str(tmp_path / "plain")) == [SAE]
    assert not (tmp_path / "plain" / SAE / "evidence").exists()
    told = CliRunner().invoke(app, ["pull", str(bucket), str(tmp_path / "full"), "--with-evidence"])
    assert told.exit_code == 0, told.output
    wanted = {name: data for name, data in files(bucket / "saes" / SAE / "evidence").items() if "/work/" not in name}
    assert files(tmp_path / "full" / SAE / "evidence") == wanted
    copied = evidence_of(Bucket(str(tmp_path / "full" / SAE)), "")
    assert copied.is_whole(read=True) and list(copied.labels()) == [1]


def test_what_is_there_is_not_copied_again_and_new_labels_are(bucket, tmp_path):
    pull(str(bucket), str(tmp_path / "out"), with_evidence=True)
    folder = tmp_path / "out" / SAE / "evidence/0123456789abcdef"
    times = {name: (folder / name).stat().st_mtime_ns for name in ("evidence.json", "examples.arrow")}
    labels = bucket / "saes" / SAE / "evidence/0123456789abcdef/labels"
    (labels / "theirs.parquet").write_bytes((labels / "mine.parquet").read_bytes())
    pull(str(bucket), str(tmp_path / "out"), with_evidence=True)
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times and (folder / "labels/theirs.parquet").exists()


def test_a_broken_copy_is_made_again(bucket, tmp_path):
    pull(str(bucket), str(tmp_path / "out"), with_evidence=True)
    file = tmp_path / "out" / SAE / "evidence/0123456789abcdef/examples.arrow"
    file.write_bytes(file.read_bytes()[:100])
    pull(str(bucket), str(tmp_path / "out"), with_evidence=True)
    assert evidence_of(Bucket(str(tmp_path / "out" / SAE)), "").is_whole(read=True)


def test_damaged_evidence_is_named_and_not_committed(bucket, tmp_path):
    file = bucket / "saes" / SAE / "evidence/0123456789abcdef/examples.arrow"
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[200] ^= 1
    file.write_bytes(data.tobytes())
    with pytest.raises(ScopemillError, match="examples.arrow does not match its checksum"):
        pull(str(bucket), str(tmp_path / "out"), with_evidence=True)
    assert not (tmp_path / "out" / SAE / "evidence/0123456789abcdef/evidence.json").exists()
    assert (tmp_path / "out" / SAE / "cfg.json").exists()
