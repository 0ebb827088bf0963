"""The same batch through our step and that of other packages, in turn: ``python tests/bench/peers/run.py PYTHON``.

PYTHON is that of an environment with what tests/interop/requirements.txt names. Each package has a process of its own, which waits
while another takes its step; all begin with the same weights, and have to make the same of them before anything is timed.
sparsify is missing: its step is a part of its pass over a language model and cannot be called apart from that.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from history import report  # noqa: E402
from measure import Figure, alternate  # noqa: E402
from steps import SIZES, SPARSE_GOALS, THREADS, Size, loop_of, white_noise  # noqa: E402

PACKAGES = {"sae-lens": "saelens.py", "dictionary-learning": "dictionaries.py"}
GOALS = {"sae-lens": ">= 8"}
ROUNDS = 3
TOLERANCE = 1e-4  # where a pre-activation lies within rounding of its threshold, it may fire or not


class Stepper:
    """A package's process: see `step`."""

    def __init__(self, name: str, command: list[str]):
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}'s process ended (exit status {self._process.wait()}); what it said last stands above")
        return line

    def step(self) -> float:
        """Take one; its seconds."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self.answer())

    def close(self) -> None:
        self._process.communicate()


def compare(architecture: str, size: Size, python: str) -> Iterator[Figure]:
    l0 = size.latents(architecture)
    weights = {name.removeprefix("activation."): p.detach() for name, p in loop_of(architecture, size, l0).sae.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file({"x": white_noise(size), **weights}, Path(folder) / "batch.safetensors")
        arguments = [architecture, str(l0), folder, str(THREADS)]
        steppers = [Stepper("ours", [sys.executable, str(HERE / "ours.py"), *arguments])]
        steppers += [Stepper(name, [python, str(HERE / script), *arguments]) for name, script in PACKAGES.items()]
        try:
            agree(f"{architecture} {size}", {stepper.name: json.loads(stepper.answer()) for stepper in steppers})
            rounds = alternate({stepper.name: stepper.step for stepper in steppers}, ROUNDS)
        finally:
            for stepper in steppers:
                stepper.close()
    for name in PACKAGES:
        yield rounds.figure(f"{name}'s {architecture} step / ours {size}", name, "ours", GOALS.get(name, ""))


def agree(what: str, told: dict[str, dict[str, float]]) -> None:
    """All have to say the same of the first weights."""
    for name, theirs in told.items():
        for word, ours in told["ours"].items():
            if not abs(theirs[word] - ours) <= TOLERANCE * abs(ours):
                sys.exit(f"{what}: {name} says {word} {theirs[word]:.6g} where ours is {ours:.6g}, so nothing is compared")
    print(f"{what}: all say", ", ".join(f"{word} {value:.6g}" for word, value in told["ours"].items()))


def figures(python: str) -> Iterator[Figure]:
    for size in SIZES:
        for architecture in SPARSE_GOALS:
            yield from compare(architecture, size, python)


if __name__ == "__main__":
    report(figures(sys.argv[1]))
