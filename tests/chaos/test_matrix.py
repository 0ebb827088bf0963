"""The restart matrix' short form; `make chaos` takes every row."""

import subprocess
import sys
from pathlib import Path


def test_a_sweep_ends_with_the_same_bits_whoever_is_killed():
    run = Path(__file__).with_name("run.py")
    told = subprocess.run([sys.executable, run, "--short"], capture_output=True, text=True, timeout=280)
    assert told.returncode == 0, f"{told.stdout}\n{told.stderr[-2000:]}"
    assert told.stdout.count("same bits") == 3
