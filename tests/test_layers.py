"""Imports run down only: the contract in pyproject.toml, checked by import-linter."""

import os
import subprocess
import sys
from pathlib import Path


def test_imports_run_down_the_rooms_only():
    script = Path(sys.executable).with_name("lint-imports")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root / ".import")}
    told = subprocess.run([script, "--no-cache"], cwd=root, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-2000:]
