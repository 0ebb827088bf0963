"""Modules that `scopemill ls` and `status` import must be light: torch and transformers take seconds, and the commands answer at once."""

import os
import subprocess
import sys

import pytest

LIGHT = [
    "scopemill.evaluator.config",
    "scopemill.evaluator.fidelity.jobs",
    "scopemill.evaluator.fidelity.results",
    "scopemill.evaluator.report.page",
    "scopemill.harvester.config",
    "scopemill.harvester.language_model.card",
    "scopemill.harvester.rolling",
    "scopemill.harvester.task",
    "scopemill.harvester.text.corpus",
    "scopemill.harvester.text.packing",
]
HEAVY = {"datasets", "ray", "torch", "transformer_lens", "transformers"}


def imported_by(module: str) -> set[str]:
    """Import a module in a fresh interpreter and return the names of all packages that this imports."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the code that pytest tests, whatever is installed
    process = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return set(process.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_nothing_heavy(module):
    imported = imported_by(module)
    assert "scopemill" in imported
    assert not imported & HEAVY


def test_heavy_imports_would_be_noticed():
    assert "torch" in imported_by("scopemill.harvester.dtypes")
