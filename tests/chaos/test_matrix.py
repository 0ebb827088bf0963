"""The restart matrix in its short form (`make chaos` runs every row), and that the matrix notices wrong batches and bytes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from chaos.run import differences, journal_problems

STEPS, EVERY = 6, 4
PLAN = SimpleNamespace(saes=[SimpleNamespace(name="a", config=SimpleNamespace(steps=STEPS, checkpoint_every=EVERY))])
BATCHES = {("a", k): f"digest {k}" for k in range(STEPS)}


@pytest.mark.cluster
@pytest.mark.timeout(1600)
def test_a_sweep_ends_with_the_same_bits_whoever_is_killed():
    run = Path(__file__).with_name("run.py")
    told = subprocess.run([sys.executable, run, "--short"], capture_output=True, text=True, timeout=1500)
    assert told.returncode == 0, f"{told.stdout}\n{told.stderr[-2000:]}"
    assert told.stdout.count("same bits") == 4


def journal(*lives: range | list[int]) -> list[tuple[str, str, int, str]]:
    return [(str(pid), "a", k, BATCHES["a", k]) for pid, life in enumerate(lives) for k in life]


@pytest.mark.parametrize("lives", [[range(6)], [range(5), range(4, 6)], [range(2), range(6)], [range(3), range(2), range(6)]])
def test_lives_that_begin_at_a_cursor_and_go_on_are_right(lives):
    assert journal_problems(PLAN, journal(*lives), BATCHES) == []


@pytest.mark.parametrize(
    "lives", [[range(5)], [[0, 1, 3, 4, 5]], [[0, 1, 1, 2, 3, 4, 5]], [range(5), range(5, 6)], [range(3), range(4, 6)]]
)
def test_a_batch_that_is_missed_taken_twice_or_begun_elsewhere_is_noticed(lives):
    assert journal_problems(PLAN, journal(*lives), BATCHES)


def test_other_bytes_missing_and_further_objects_are_noticed(tmp_path):
    for root, objects in (("one", {"b": b"1", "c": b"1"}), ("two", {"a": b"1", "b": b"2"})):
        for name, data in objects.items():
            path = tmp_path / root / "saes" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    assert differences(tmp_path / "one", tmp_path / "two") == ["extra: saes/a", "missing: saes/c", "other bytes: saes/b"]
    assert differences(tmp_path / "one", tmp_path / "one") == []
