"""Write the demo's sweep file, filled with the places of this machine."""

from importlib.resources import files
from pathlib import Path

from scopemill.deploy.demo.standard_library import write_corpus

BUCKET = Path("demo-bucket")
MODEL = Path(str(files("scopemill.deploy.demo") / "gemma-2-stdlib"))


def write_sweep() -> str:
    """Write the corpus and the demo's sweep file into the demo's bucket.

    Returns the sweep file's path.
    """
    write_corpus(BUCKET / "corpus")
    text = MODEL.with_name("sweep.yaml").read_text().format(model=MODEL, bucket=BUCKET)
    path = BUCKET / "sweep.yaml"
    path.write_text(text)
    return str(path)
