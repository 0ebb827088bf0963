"""``scopemill templates``: what is kept can be trained with, and what cannot is not kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import tiny_sweep
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.proto.errors import InputError, TemplateError
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import Recipe
from scopemill.trainer.config.templates import load_template, templates


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SCOPEMILL_TEMPLATES", str(tmp_path / "own"))
    return tmp_path / "own"


def run(*arguments: str) -> str:
    """What the command prints; its error is raised as it is."""
    ran = CliRunner().invoke(app, ["templates", *arguments])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_list_and_show_have_every_template_of_the_package():
    listed = run("list")
    for template in templates():
        assert template.name in listed
        assert yaml.safe_load(run("show", template.name)) == {"source": template.source} | template.fields


def test_every_template_of_the_package_can_be_copied_and_trained_with():
    for template in templates():
        run("copy", template.name, f"my-{template.name}")
        copy = load_template(f"my-{template.name}")
        assert copy.own and copy.fields == template.fields


def sweep_file(folder: Path, **train) -> str:
    data = tiny_sweep.sweep(str(folder / "bucket"), folder / "text.jsonl")
    kept = {"template": "quick", "widths": [256], "sparsities": [0.001], "learning_rate": 2e-3, "at_once": 3} | train
    (folder / "sweep.yaml").write_text(yaml.safe_dump(data | {"train": kept}))
    return str(folder / "sweep.yaml")


def test_a_saved_sweep_trains_the_same_by_its_name_alone(tmp_path):
    file = sweep_file(tmp_path, architecture="matryoshka", sparsities=[32], prefixes=[0.25, 1.0])
    run("save", "mine", "--from", file)
    one = TrainConfig.model_validate({"template": "mine"})
    other = TrainConfig.model_validate(yaml.safe_load(Path(file).read_text())["train"])
    for field in (*Recipe.model_fields, "widths", "sparsities"):
        assert getattr(one, field) == getattr(other, field), field
    assert one.learning_rate == 2e-3 and one.at_once != 3, "how many run at once is about the machine"
    assert "template quick" in load_template("mine").source


def test_a_template_travels_through_a_file(tmp_path):
    run("save", "mine", "--from", sweep_file(tmp_path))
    run("export", "mine", str(tmp_path / "theirs.yaml"))
    run("import", str(tmp_path / "theirs.yaml"))
    assert load_template("theirs").fields == load_template("mine").fields
    with pytest.raises(InputError, match="cannot be written: File exists"):
        run("export", "mine", str(tmp_path / "theirs.yaml"))


def test_a_name_that_is_taken_is_not_written_over_unless_told(tmp_path):
    run("copy", "quick", "mine")
    with pytest.raises(TemplateError, match="is there already"):
        run("copy", "matryoshka", "mine")
    assert load_template("mine").fields["architecture"] == "jumprelu"
    run("copy", "matryoshka", "mine", "--replace")
    assert load_template("mine").fields["architecture"] == "matryoshka"
    with pytest.raises(TemplateError, match="comes with the package"):
        run("copy", "matryoshka", "quick", "--replace")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": -1}, "learning_rate: Input should be greater than 0"),
        ({"learning_rate": None}, "learning_rate"),
        ({"learning_rat": 1}, "learning_rat: there is no such field"),
        ({"tokens": "absent"}, "lacks tokens"),
        ({"architecture": "transformer"}, "architecture"),
        ({"architecture": "topk", "activation": "relu"}, "has its own"),
        ({"template": "quick"}, "cannot build on another"),
        ({"widths": []}, "widths"),
        ({"seed": float("nan")}, "seed"),
        ({"source": 3}, "a 'source' that says"),
    ],
)
def test_a_template_that_could_not_be_trained_with_is_not_kept(tmp_path, own, changes, named):
    fields = {"source": "x"} | load_template("quick").fields | changes
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value != "absent"}))
    with pytest.raises(TemplateError) as caught:
        run("import", str(file))
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not own.exists()


@pytest.mark.parametrize(("text", "named"), [("{", "is not YAML"), ("[1]", "not a mapping"), (None, "cannot be read")])
def test_a_file_that_is_no_template_is_refused(tmp_path, text, named):
    if text is not None:
        (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(TemplateError, match=named):
        run("import", str(tmp_path / "bad.yaml"))


def test_an_unknown_name_is_one_sentence_on_stderr(tmp_path):
    command = [sys.executable, "-m", "scopemill.deploy", "templates", "show", "slow"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert told.returncode == 2 and told.stderr.startswith("error template 'slow' is not known: there are anthropic-2025")
