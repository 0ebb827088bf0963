"""Write the demo's sweep file, filled with the places of this machine."""

from importlib.resources import files
from pathlib import Path

from scopemill.deploy.demo.standard_library import write_corpus
from scopemill.deploy.plan.yaml_text import filled

BUCKET = Path("demo-bucket")
MODEL = Path(str(files("scopemill.deploy.demo") / "gemma-2-stdlib"))


def write_sweep() -> str:
    """Write the corpus and the demo's sweep file into the demo's bucket.

    Returns the sweep file's path.
    """
    write_corpus(BUCKET / "corpus")
    places = {"model": MODEL, "bucket": BUCKET, "train": BUCKET / "corpus/train.jsonl", "held_out": BUCKET / "corpus/held_out.jsonl"}
    path = BUCKET / "sweep.yaml"
    path.write_text(filled(MODEL.with_name("sweep.yaml").read_text("utf-8"), places), "utf-8")
    return str(path)
