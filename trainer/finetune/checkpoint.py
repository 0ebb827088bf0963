"""Write and read the checkpoints of a fine-tuning; ``checkpoint.json`` is written last and commits one.

A checkpoint holds weights and Adam's moments in one file. Its step is the cursor in the text. Only the newest is kept.
"""

import safetensors.torch

from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors, read_record, read_tensors
from scopemill.trainer.finetune.loop import FinetuneLoop, StepReport


def save(bucket: Bucket, layout: SaeLayout, loop: FinetuneLoop, history: list[StepReport]) -> None:
    """Commit a checkpoint of the loop with its history, then remove older ones."""
    older = [name for name in bucket.names(layout.checkpoints) if name != f"{loop.step_number:08d}"]
    place = layout.checkpoint(loop.step_number)
    bucket.write(place.weights, *checksummed_tensors(safetensors.torch.save(loop.state())))
    bucket.write(place.record, checksummed_record({"step": loop.step_number, "history": [vars(row) for row in history]}))
    for name in older:
        bucket.remove_tree(f"{layout.checkpoints}/{name}")


def resume(bucket: Bucket, layout: SaeLayout, loop: FinetuneLoop) -> list[StepReport]:
    """Restore the loop from the newest whole checkpoint, and return its history.

    Without a checkpoint the loop stays as it is and the history is empty.
    """
    for step in sorted((int(name) for name in bucket.names(layout.checkpoints) if name.isdecimal()), reverse=True):
        place = layout.checkpoint(step)
        try:
            record = read_record(bucket, place.record)
            loop.restore(step, safetensors.torch.load(read_tensors(bucket, place.weights)))
        except (CorruptObject, MissingObject):
            continue
        return [StepReport(**row) for row in record["history"]]
    return []
