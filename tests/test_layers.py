"""Imports run down only, by the contracts in pyproject.toml, and never in a circle."""

import os
import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("scopemill", "scopemill.proto")  # proto is a namespace portion, which is not found below the root package


def test_imports_run_down_the_rooms_only():
    script = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".import")}
    told = subprocess.run([script, "--no-cache"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-2000:]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that all reach one another (Tarjan's strongly connected components with more than one member or a self-import)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for imported in imports.get(module, ()):
            if imported not in number:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in path:
                lowest[module] = min(lowest[module], number[imported])
        if lowest[module] == number[module]:
            members = path[path.index(module) :]
            del path[path.index(module) :]
            if len(members) > 1 or module in imports.get(module, ()):
                found.append(sorted(members))

    for module in imports:
        if module not in number:
            visit(module)
    return found


def test_no_circle_of_imports():
    """Imports inside functions and for the type checker count as well; so do the packages that Python runs on the way to a module."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    ours = graph.modules
    imports = {}
    for module in ours:
        direct = graph.find_modules_directly_imported_by(module) & ours
        outer = {name.rsplit(".", depth)[0] for name in direct for depth in range(1, name.count(".") + 1)} & ours
        imports[module] = direct | {package for package in outer if not f"{module}.".startswith(f"{package}.")}
    assert len(ours) > 100, "the graph is missing most of the package"
    found = circles(imports)
    assert not found, "modules that import one another:\n" + "\n".join(" <-> ".join(circle) for circle in found)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a", "c"}}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]
