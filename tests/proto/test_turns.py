"""Those that need the same results divide the work, and one that dies leaves its part to the others."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from scopemill.proto.turns import by_turns


def test_each_call_is_made_by_one_of_those_that_start_together(tmp_path):
    """A lock belongs to an open file, so threads stand for processes here."""
    barrier, made, results = threading.Barrier(3), [], set()

    def make(name: str) -> None:
        if name not in results:
            made.append(name)
            if name in "abc":
                barrier.wait(5)  # three calls are under way at once
            results.add(name)

    def work(_: int) -> set[str]:
        by_turns(tmp_path, {name: lambda name=name: make(name) for name in "abcd"})
        return set(results)

    with ThreadPoolExecutor(3) as pool:
        assert all(seen == set("abcd") for seen in pool.map(work, range(3)))
    assert sorted(made) == list("abcd")


def test_what_a_killed_process_had_begun_is_done_by_another(tmp_path):
    script = (
        "import pathlib, sys, time; from scopemill.proto.turns import by_turns;"
        "by_turns(pathlib.Path(sys.argv[1]), {'a': lambda: (print('begun', flush=True), time.sleep(60))})"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        made: list[str] = []
        other = threading.Thread(target=by_turns, args=(tmp_path, {name: lambda name=name: made.append(name) for name in "ab"}))
        other.start()
        other.join(0.2)
        assert made == ["b"]
        process.kill()
        other.join(5)
    assert made == ["b", "a"]


def test_without_a_folder_to_write_to_calls_are_made_all_the_same(tmp_path):
    made: list[str] = []
    by_turns(tmp_path / "absent", {"a": lambda: made.append("a"), "b": lambda: made.append("b")})
    assert made == ["a", "b"]
