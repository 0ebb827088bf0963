"""Tasks: what a folder of ``prompt,target`` files becomes."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopemill.evaluator.config import ProbesConfig
from scopemill.evaluator.probes.tasks import FEWEST, TEST_SHARE, as_task, check_tasks, load_tasks, read_rows
from scopemill.proto.errors import CorpusError


def write(path, rows, header=("prompt", "prompt_len", "target")) -> None:
    """A file as sae-probes has it; compressed if its name says so."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    if path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        data = sink.getvalue().to_pybytes()
    path.write_bytes(data)


def balanced(n: int, names=("no", "yes")) -> list[tuple[str, int, str]]:
    return [(f"prompt {i}, of\nmany", 3, names[i % len(names)]) for i in range(n)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.zst"])
def test_prompts_with_commas_and_lines_come_back(tmp_path, name):
    write(tmp_path / name, balanced(4))
    assert read_rows(str(tmp_path / name)) == [(f"prompt {i}, of\nmany", ("no", "yes")[i % 2]) for i in range(4)]


def test_files_with_two_targets_are_tasks_by_name_and_others_are_left_out(tmp_path):
    write(tmp_path / "2_b.csv.zst", balanced(100))
    write(tmp_path / "1_a.csv", balanced(80, ("False", "True")))
    write(tmp_path / "3_three.csv.zst", balanced(90, ("x", "y", "z")))
    write(tmp_path / "4_small.csv.zst", balanced(2 * FEWEST - 2))
    (tmp_path / "README.md").write_text("not a task")
    assert [task.name for task in load_tasks(ProbesConfig(source=str(tmp_path)))] == ["1_a", "2_b"]
    assert [task.name for task in load_tasks(ProbesConfig(source=str(tmp_path), tasks=("2_*",)))] == ["2_b"]


@pytest.mark.parametrize(
    "rows, header, sentence",
    [
        (balanced(90, ("x", "y", "z")), ("prompt", "n", "target"), "none|no file .* is a binary task"),
        (balanced(90), ("text", "n", "target"), "no column 'prompt'"),
    ],
)
def test_a_folder_without_tasks_is_refused_in_a_sentence(tmp_path, rows, header, sentence):
    write(tmp_path / "a.csv.zst", rows, header)
    with pytest.raises(CorpusError, match=sentence):
        load_tasks(ProbesConfig(source=str(tmp_path)))


def test_a_folder_that_is_not_there_or_broken_is_refused_before_any_work(tmp_path):
    with pytest.raises(CorpusError, match="no csv or csv.zst file"):
        check_tasks(ProbesConfig(source=str(tmp_path / "nowhere")))
    (tmp_path / "a.csv.zst").write_bytes(b"not zstd")
    with pytest.raises(CorpusError, match="a.csv.zst cannot be read"):
        check_tasks(ProbesConfig(source=str(tmp_path)))


labelled = st.lists(st.tuples(st.integers(0, 60).map(str), st.sampled_from(["a", "b"])), min_size=40, max_size=400)


@settings(max_examples=40)
@given(labelled, st.integers(40, 200))
def test_both_targets_have_as_many_prompts_in_training_and_in_the_test(rows, examples):
    task = as_task("t", rows, examples)
    clear = {prompt for prompt, _ in rows if len({target for p, target in rows if p == prompt}) == 1}
    each = min([examples // 2, *(len({p for p, target in rows if p in clear and target == name}) for name in "ab")])
    assert (task is None) == (each < FEWEST)
    if task:
        assert len(task.prompts) == len(set(task.prompts)) == 2 * each and set(task.prompts) <= clear, "each prompt once, and of one target"
        truth = dict(rows)
        assert [truth[prompt] == "b" for prompt in task.prompts] == task.targets.tolist()
        for of_target in (task.targets, ~task.targets):
            assert (task.is_test & of_target).sum() == round(TEST_SHARE * each)
        again = as_task("t", rows, examples)
        assert again.prompts == task.prompts and np.array_equal(again.is_test, task.is_test)
