"""The sweep file: every wrong value is refused in one sentence that names the file, the field and the value."""

import json
from pathlib import Path

import pytest
import yaml
from support import tiny_sweep

from scopemill.deploy.plan import reference as sweep_fields
from scopemill.deploy.plan.record import digest_of
from scopemill.deploy.plan.submission import write_submission
from scopemill.deploy.plan.sweep_file import load_sweep, parse_sweep
from scopemill.deploy.plan.yaml_text import filled, parsed
from scopemill.proto.errors import SweepFileError
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tiny_sweep.sweep(str(tmp_path / "bucket"), tmp_path / "text.jsonl")))
    return path


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(SweepFileError) as caught:
        load_sweep(str(file), list(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("trian.widths=[1]", "trian: there is no such field"),
        ("train.learning_rat=1", "train.learning_rat: there is no such field"),
        ("train.template=fast", "train: template 'fast' is not known: there are anthropic-2025, base-to-chat, batchtopk"),
        ("train.batch_size=0", "train.batch_size: should be greater than or equal to 1, not 0"),
        ("train.batch_size=many", "train.batch_size: should be a valid integer, not 'many'"),
        ("train.widths=[256, 256]", "train: widths holds a value twice"),
        ("train.widths=[0]", "train: widths must be at least 1"),
        ("train.tokens=10", "train: tokens (10) is less than one batch"),
        ("harvest.tokens=100", "harvest: tokens (100) is less than one shard"),
        ("harvest.layers=some", "harvest.layers: should be a valid array, not 'some'; layers can also be 'all'"),
        ("harvest.layers=[-1]", "harvest.layers[0]: should be greater than or equal to 0, not -1; layers can also be 'all'"),
        ("harvest.sites=[resid_pst]", "harvest.sites[0]: should be 'resid_pre', 'resid_mid'"),
        ("harvest.layers=[1, 1]", "harvest: layers must name at least one, and none twice"),
        ("corpus.format=csv", "corpus.format: should be 'lines', 'files', 'jsonl', 'parquet' or 'hub', not 'csv'"),
        ("server.lag=drop", "server.lag: should be 'block', 'detach' or 'skip', not 'drop'"),
        ("train.halving={rungs: [0.5, 0.25]}", "train.halving: rungs: must be shares of the steps that rise between 0 and 1"),
        ("train.halving={rungs: [0.3, 0.31]}", "train: halving: the history has a row every 8 of the 24 steps"),
        ("train.halving={keep: 1}", "train.halving.keep: should be less than 1"),
        ("train.labels={zone: 'a b'}", "train.labels: 'a b' is not a valid label"),
        ("name=../elsewhere", "name '../elsewhere' is not a usable name"),
        ("bucket=", "bucket: should be a valid string, not None"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_field_and_what_is_right(file, override, sentence):
    assert refusal(file, override).startswith(f"{file}: {sentence}")


def test_every_wrong_field_is_named_at_once(file):
    told = refusal(file, "harvest.tokens=-5", "train.batch_size=0", "nmae=x").splitlines()
    assert len(told) == 3 and all(line.startswith(f"{file}: ") for line in told)


def test_a_missing_field_is_named(file):
    data = yaml.safe_load(file.read_text())
    del data["corpus"]["source"]
    file.write_text(yaml.safe_dump(data))
    assert "corpus.source: field required" in refusal(file)


def test_a_file_that_is_not_there_or_not_yaml_or_no_mapping_is_refused(tmp_path):
    assert "none.yaml does not exist" in refusal(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    assert "is not YAML" in refusal(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "does not hold a mapping" in refusal(tmp_path / "list.yaml")


def test_a_key_given_twice_is_refused_rather_than_one_of_them_ignored(file):
    file.write_text(file.read_text() + "\nname: again\n")
    assert "name is given twice" in refusal(file)


def test_numbers_in_scientific_notation_are_numbers(file):
    assert load_sweep(str(file), ["train.learning_rate=7e-5"]).train.learning_rate == 7e-5
    assert load_sweep(str(file), ["train.sparsities=[1e-3, 6e-4]"]).train.sparsities == (1e-3, 6e-4)


def test_an_override_that_does_not_parse_is_refused(file):
    assert "is not of the form key=value" in refusal(file, "train.tokens")
    assert "name is a value, and has no fields of its own" in refusal(file, "name.x=1")


def test_rivals_that_could_not_train_at_once_are_not_compared(file):
    assert "at_once is 1: raise at_once to 2" in refusal(file, "train.at_once=1", "train.halving={rungs: [0.5]}")
    assert load_sweep(str(file), ["train.at_once=1", "train.group=2", "train.halving={rungs: [0.5]}"])


def test_a_model_may_be_a_name_or_a_mapping(file):
    assert load_sweep(str(file), ["model=google/gemma-2-2b"]).model.name == "google/gemma-2-2b"
    assert load_sweep(str(file), ["model={name: a/b, revision: main}"]).model.revision == "main"


def test_templates_fill_what_is_not_given(file):
    train = load_sweep(str(file), ["train={template: gemma-scope, widths: [16384], sparsities: [6e-4], bandwidth: 0.002}"]).train
    assert (train.learning_rate, train.batch_size, train.bandwidth) == (7e-5, 4096, 0.002)


def test_local_paths_become_absolute_and_urls_stay(file):
    located = load_sweep(str(file), ["bucket=here", "corpus.source=s3://there/text.jsonl"]).located()
    assert located.bucket == str(Path("here").absolute())
    assert located.corpus.source == "s3://there/text.jsonl"


def test_the_reference_in_docs_is_what_the_fields_say():
    assert (ROOT / "docs" / "sweep-file.md").read_text() == sweep_fields.render(), (
        "run python -m scopemill.deploy.plan.reference > docs/sweep-file.md"
    )


def test_the_sweep_in_the_readme_parses(tmp_path):
    block = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "readme.yaml").write_text(block)
    assert load_sweep(str(tmp_path / "readme.yaml")).train.widths == (16384,)


def test_the_whole_model_in_the_docs_parses(tmp_path):
    block = next(b for b in (ROOT / "docs" / "cluster.md").read_text().split("```yaml\n") if b.startswith("name:")).split("```")[0]
    (tmp_path / "docs.yaml").write_text(block)
    jumprelu, batchtopk = load_sweep(str(tmp_path / "docs.yaml")).train.variants
    assert (jumprelu.architecture, batchtopk.architecture) == ("jumprelu", "batchtopk")
    assert jumprelu.widths == batchtopk.widths == (16384, 65536)


def test_a_sweep_file_can_lie_at_any_url(file):
    import fsspec

    with fsspec.open("memory://sweeps/tiny.yaml", "w") as remote:
        remote.write(file.read_text())
    assert load_sweep("memory://sweeps/tiny.yaml") == load_sweep(str(file))


def test_what_is_written_into_the_bucket_parses_again(file):
    config = load_sweep(str(file))
    assert json.loads(config.model_dump_json())["name"] == "tiny"


def stored(folder: Path, as_published: str = "given") -> Path:
    """The file of a sweep in its bucket; the sweep was given relative paths, in ``folder``."""
    given = parse_sweep(tiny_sweep.sweep("bucket", Path("text.jsonl")), "sweep.yaml")
    given._folder = str(folder)
    bucket = Bucket(given.located().bucket)
    write_submission(bucket, given.submission)
    published = given if as_published == "given" else given.located()
    bucket.write(SweepLayout("tiny").config, yaml.safe_dump(published.model_dump(mode="json")).encode())
    return folder / "bucket/sweeps/tiny/sweep.yaml"


@pytest.mark.parametrize("as_published", ["given", "located"])
def test_the_file_in_the_bucket_is_the_sweep_as_it_was_given(tmp_path, monkeypatch, as_published):
    """Wherever the command is run, and wherever the bucket has moved to: relative paths, which decide ids, stay as they were written."""
    file = stored(tmp_path, as_published)
    given = parse_sweep(tiny_sweep.sweep("bucket", Path("text.jsonl")), "sweep.yaml")
    for folder, path in (("/", str(file)), (str(file.parent), "sweep.yaml")):
        monkeypatch.chdir(folder)
        config = load_sweep(path)
        assert digest_of(config) == digest_of(given)
        assert config.located().bucket == str(tmp_path / "bucket") and config.located().corpus.source == str(tmp_path / "text.jsonl")
        assert load_sweep(path, ["train.retries=3"]).train.retries == 3
        assert load_sweep(path, ["bucket=s3://other"]).located().bucket == "s3://other"
    (tmp_path / "bucket").rename(tmp_path / "moved")
    moved = load_sweep(str(tmp_path / "moved/sweeps/tiny/sweep.yaml"))
    assert moved.located().bucket == str(tmp_path / "moved") and digest_of(moved) == digest_of(given)


def test_a_file_in_the_bucket_that_was_edited_is_taken_as_it_stands(tmp_path):
    file = stored(tmp_path)
    edited = yaml.safe_load(file.read_text())
    edited["train"]["retries"] = 7
    file.write_text(yaml.safe_dump(edited))
    assert load_sweep(str(file)).train.retries == 7


def test_a_file_in_a_folder_called_sweeps_need_be_no_buckets(file, tmp_path):
    own = tmp_path / "sweeps/my sweep/sweep.yaml"
    own.parent.mkdir(parents=True)
    own.write_bytes(file.read_bytes())
    assert load_sweep(str(own)) == load_sweep(str(file))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda text: text.replace("\n", "\r\n").encode(), True),
        (lambda text: b"\xef\xbb\xbf" + text.encode(), True),
        (lambda text: text.replace("name: tiny", "name: 2026-11-25").encode(), "2026-11-25"),  # YAML's dates are texts here
        (lambda text: text.encode("utf-16"), "is not text in UTF-8"),
        (lambda text: text.replace("  layers", "\tlayers").encode(), r"is not YAML: .*character '\\t'"),
        (lambda text: f"{text}name: again\n".encode(), "name is given twice"),
        (lambda text: b"[" * 5000, "nests its values too deeply"),
        (lambda text: f"{text}file_sd: &a [*a]\n".encode(), "stands for more than 100,000 values"),
        (lambda text: f"{text}file_sd: {'9' * 5000}\n".encode(), "holds a number that cannot be read"),
        (lambda text: f'{text}file_sd: "\\ud83d"\n'.encode(), "surrogates not allowed"),
        (lambda text: text.replace("name: tiny", f"name: {'a' * 300}").encode(), "at most 200"),
    ],
)  # fmt: skip
def test_a_file_as_other_programs_save_it_is_read_rightly_or_refused(file, change, same):
    whole = load_sweep(str(file))
    file.write_bytes(change(file.read_text()))
    if same is True:
        assert load_sweep(str(file)) == whole
    elif same == "2026-11-25":
        assert load_sweep(str(file)).name == same
    else:
        with pytest.raises(SweepFileError, match=same):
            load_sweep(str(file))


def test_merge_keys_of_yaml_are_understood_and_own_values_win(file):
    file.write_text(file.read_text() + "evidence: &e {top: 3, samples: 2}\n")
    data = file.read_text().replace("evaluation:\n", "evaluation:\n  <<: {actors: 2, sequences: 5}\n")
    file.write_text(data)
    evaluation = load_sweep(str(file)).evaluation
    assert (evaluation.actors, evaluation.sequences) == (2, 8)


@pytest.mark.parametrize("room", ["demo", "real"])
def test_the_sweep_files_of_the_package_take_folders_of_any_name(room):
    template = (ROOT / "deploy" / room / "sweep.yaml").read_text()
    odd = Path("/größe #1: {a, 'b'}/\"日本\"")
    data = parsed(filled(template, {name: odd / name for name in ("bucket", "model", "train", "held_out", "probes")}))
    config = parse_sweep(data, "sweep.yaml")
    assert (config.bucket, config.corpus.source) == (str(odd / "bucket"), str(odd / "train"))
