"""Documents keep up with the tree: every path, link and make target that they name exists; prose is 100 columns wide."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("proto/*.md")])
ROOMS = "proto|harvester|activation_server|trainer|evaluator|deploy|tests|docs"

pytestmark = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is no code, table or heading."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if not code and not line.lstrip().startswith(("```", "|", "#", "![")):
            yield number, line


def test_paths_exist(document):
    named = set(re.findall(rf"`((?:{ROOMS})/[\w./-]*)[^`]*`", document.read_text(encoding="utf-8")))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing, f"{document.relative_to(ROOT)} names paths that do not exist: {missing}"


def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = sorted(link for link in links if "://" not in link and not (document.parent / link).exists())
    assert not missing, f"{document.relative_to(ROOT)} links to files that do not exist: {missing}"


def test_make_targets_exist(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    missing = sorted({*re.findall(r"`make ([\w-]+)", text), *re.findall(r"^make ([\w-]+)", text, re.MULTILINE)} - targets)
    retired = {"lint"} if document.name == "CHANGELOG.md" else set()
    assert not set(missing) - retired, f"{document.relative_to(ROOT)} names make targets that do not exist: {missing}"


def test_prose_is_100_columns_wide(document):
    wide = [number for number, line in prose(document.read_text(encoding="utf-8")) if len(line) > 100]
    assert not wide, f"{document.relative_to(ROOT)} has prose wider than 100 columns on lines {wide}"
