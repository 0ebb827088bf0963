"""The blows of the matrix: what is struck, at which call."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Describe one blow: what it strikes, before or after a call, in one phase.

    Victims: the process ``self``, the ``driver``, the ``raylet`` with all processes of the cluster; ``power``, which also takes what
    was not synced; the newest ``checkpoint``, damaged before its trainer dies; all ``shards``, deleted while nobody dies; the
    ``connection`` between the processes of a wide SAE, while nobody dies.
    """

    name: str
    phase: str
    call: str
    when: str
    where: str = ""  # a pattern of the call's arguments
    nth: int = 1
    victim: str = "self"
    short: bool = False

    @property
    def ends_the_command(self) -> bool:
        return self.victim in ("driver", "raylet", "power")


ROWS = [
    Row("harvester, in the middle of a bucket", "harvest", "ShardBuffers.put", "after", nth=2),
    Row("harvester, in the middle of one object", "harvest", "os.replace", "before", r"shards/00001.zarr/blocks.3\S*/c/"),
    Row("harvester, between two chunk objects", "harvest", "Bucket.write", "before", r"shards/00001.zarr/blocks.3\S*/c/"),
    Row("harvester, between data and commit", "harvest", "Bucket.create", "before", "commits/00001", short=True),
    Row("server, its window full", "train", "ActivationServer._send_batch", "before", nth=40, short=True),
    Row("trainer, between two steps", "train", "Loop.step", "after", nth=10),
    Row("trainer, in the middle of a checkpoint", "train", "Bucket.write", "before", "00000016/optimizer", short=True),
    Row("trainer, in the middle of one object", "train", "os.replace", "before", "00000024/weights"),
    Row("trainer, just after a checkpoint", "train", "Bucket.write", "after", "00000016/checkpoint.json"),
    Row("trainer, during its export", "train", "Bucket.write", "before", "/cfg.json"),
    Row("trainer, its newest checkpoint damaged", "train", "Bucket.write", "after", "00000024/checkpoint.json", victim="checkpoint"),
    Row("nobody; all shards deleted during training", "train", "Loop.step", "after", nth=4, victim="shards", short=True),
    Row("evaluator, before its commit", "evaluate", "Bucket.write", "before", "00000016/metrics.json"),
    Row("evidence actor, between a part and its commit", "evidence", "Bucket.write", "before", "/work/parts/"),
    Row("evidence actor, between two of its files", "evidence", "Bucket.write", "before", "/latents.parquet"),
    Row("evidence actor, between its files and their commit", "evidence", "Bucket.write", "before", "/evidence.json"),
    Row("driver, while evidence is made", "evidence", "Bucket.write", "after", "/work/parts/", victim="driver"),
    Row("driver, during training", "train", "Loop.step", "after", nth=10, victim="driver"),
    Row("the whole Ray cluster, during training", "train", "Loop.step", "after", nth=10, victim="raylet"),
    Row("the power, just after a checkpoint", "train", "Bucket.write", "after", "00000024/checkpoint.json", victim="power"),
]

CUT = Row("nobody; the connection between the processes of a wide SAE", "train", "Loop.step", "after", nth=20, victim="connection")
