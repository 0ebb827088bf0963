"""The folder ``proto`` leaves Google's ``import proto`` (proto-plus, which Ray's dashboard needs) alone, and is light to import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "zmq", "transformers", "transformer_lens", "zarr", "pyarrow", "datasets")


def python(program: str, path: Path, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_folder_is_a_namespace_portion():
    assert (ROOT / "proto" / "wire.py").exists()
    assert not (ROOT / "proto" / "__init__.py").exists()


@pytest.mark.parametrize("inside", [True, False], ids=["in the root", "elsewhere"])
def test_googles_proto_is_found_though_the_root_is_on_the_path(tmp_path, inside):
    program = "import proto; print(proto.__file__); proto.Message, proto.Field, proto.STRING"
    found = Path(python(program, ROOT, ROOT if inside else tmp_path))
    assert found.name == "__init__.py"
    assert found.parent.parent.name == "site-packages"


def test_both_can_be_imported_by_one_program(tmp_path):
    program = "import proto, scopemill.proto.wire as wire; print(proto.__file__ != wire.__file__, proto.Message.__module__)"
    assert python(program, ROOT / ".import", tmp_path) == "True proto.message"


def test_the_contract_pulls_in_nothing_heavy_and_no_other_room(tmp_path):
    modules = sorted(f"scopemill.proto.{file.stem}" for file in (ROOT / "proto").glob("*.py"))
    assert "scopemill.proto.dataset" in modules
    program = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
heavy = {{name for name in sys.modules if name.split(".")[0] in {HEAVY}}}
rooms = {{name for name in sys.modules if name.startswith("scopemill.") and not name.startswith("scopemill.proto")}}
print(*sorted(heavy | rooms))
"""
    assert python(program, ROOT / ".import", tmp_path) == ""


@pytest.mark.parametrize("module", sorted(file.stem for file in (ROOT / "proto").glob("*.py")))
def test_a_module_of_the_contract_can_be_the_first_that_is_imported(module, tmp_path):
    assert python(f"import scopemill.proto.{module}", ROOT / ".import", tmp_path) == ""
