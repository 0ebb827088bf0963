"""Export a figure as PNG and SVG."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from scopemill.evaluator.report.style import STYLE
from scopemill.proto.storage.bucket import Bucket


def save(figure: Figure, bucket: Bucket, path_without_suffix: str) -> None:
    """Write ``<path>.png`` (150 dots per inch) and ``<path>.svg``. Equal figures give equal bytes."""
    png = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    bucket.write(f"{path_without_suffix}.png", png.getvalue())
    bucket.write(f"{path_without_suffix}.svg", to_svg(figure).encode())


@matplotlib.rc_context(STYLE)
def to_svg(figure: Figure) -> str:
    """Return the figure as an SVG document. Equal figures give equal documents.

    Text stays text, and coordinates have two decimals.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Only inside tags: numbers in visible text keep their decimals. Matplotlib escapes '>' in text.
    return re.sub(r"<[a-z][^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), buffer.getvalue())
