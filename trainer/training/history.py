"""Record what happened during training, one row per logged interval.

The rows are kept as Parquet beside the SAE.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from scopemill.proto.storage.bucket import Bucket

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """Hold means over the steps since the row before.

    FVU comes from sums over these steps.
    """

    step: int
    tokens: int
    loss: float
    reconstruction: float  # E ||x - x_hat||^2, of activations with E ||x||^2 = 1
    sparsity: float  # the penalty without its coefficient: L0 or L1
    l0: float
    fvu: float
    dead_latents: int
    learning_rate: float
    sparsity_coefficient: float
    sparsity_factor: float
    steps_per_second: float
    waiting_share: float  # share of the time spent waiting for data


class History:
    """Hold the rows of one SAE's training."""

    def __init__(self, rows: list[Row] | None = None):
        self.rows = rows or []

    @staticmethod
    def load(bucket: Bucket, path: str, up_to_step: int, warn: Callable[[str], None] = log.warning) -> "History":
        """Return the history up to a step.

        For a damaged file it is empty, with a warning: no weight depends on a history, so a damaged one stops nothing. Later rows belong
        to work that a restart repeats.
        """
        if not bucket.exists(path):
            return History()
        import pyarrow as pa  # here, since training in memory does without pyarrow
        import pyarrow.parquet as parquet

        try:
            table = parquet.read_table(io.BytesIO(bucket.read(path)), page_checksum_verification=True)
            return History([Row(**row) for row in table.to_pylist() if row["step"] <= up_to_step])
        except (pa.ArrowException, OSError, TypeError, KeyError) as error:
            warn(f"{bucket.place(path)} is damaged and its rows are left out: {' '.join(str(error).split())}")
            return History()

    def save(self, bucket: Bucket, path: str) -> None:
        """Write all rows."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        schema = pa.schema([(f.name, pa.int64() if f.type is int else pa.float64()) for f in fields(Row)])
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist([asdict(row) for row in self.rows], schema=schema), buffer, write_page_checksum=True)
        bucket.write(path, buffer.getvalue())
