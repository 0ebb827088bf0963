"""Check a sweep before any work.

Each error names the field, its value and what to change.
"""

from collections.abc import Iterable
from itertools import islice

from scopemill.activation_server.keys import ServerKeys, TrainerKeys
from scopemill.activation_server.order import Order, group_sizes
from scopemill.activation_server.window import capacity_of
from scopemill.deploy.plan.cohorts import streams_at_once
from scopemill.deploy.plan.passes import Connection
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae, SweepPlan, entries
from scopemill.deploy.plan.work import Work
from scopemill.evaluator.probes.tasks import check_tasks
from scopemill.harvester.config import CorpusConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.text.checks import check_corpus
from scopemill.harvester.text.packing import pack_sequences
from scopemill.harvester.text.tokens import tokenized_documents
from scopemill.proto.chunks import CHUNK_BYTES, ArraySpec
from scopemill.proto.dataset import STORED_DTYPES, committed_shards
from scopemill.proto.errors import Conflict, CorpusError, InputError, ModelError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.wiring import Port, Wiring
from scopemill.trainer.formats import read_start
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.start import started_from


def check_context(config: SweepConfig, card: ModelCard) -> None:
    """Raise ModelError if the model cannot read sequences as long as the harvest's."""
    if card.context_length and config.harvest.context_length > card.context_length:
        raise ModelError(
            f"harvest.context_length: {card.name} takes at most {card.context_length} tokens, not {config.harvest.context_length}"
        )


def check_work(plan: SweepPlan, work: Work, packed: bool) -> str:
    """Check bucket, corpora and keys, each if the work that is left needs it.

    Once the text is ``packed``, the corpus is not read again. Returns what is read of the corpora, and what is left out. Raises
    StorageError, CorpusError or InputError.
    """
    left, located, card = work.left(), plan.config, plan.card
    read = []
    if left:
        plan.bucket.check_writable(commits=True)
    if "harvest" in left and not packed:
        read.append(check_corpus(located.model, card, located.corpus).sentence())
    if located.evaluation.corpus and {"train", "evaluate"}.intersection(left):
        read.append(f"for evaluation: {check_corpus(located.model, card, located.evaluation.corpus).sentence()}")
        _check_long_enough(located, card, located.evaluation.corpus)
    if located.evaluation.probes and {"train", "evaluate"}.intersection(left):
        check_tasks(located.evaluation.probes)
    if located.server.keys and "train" in left:
        ServerKeys.load(located.server.keys)
        TrainerKeys.load(located.server.keys)
    check_window(plan, work.state, room=1)
    return "; ".join(read)


def _check_long_enough(config: SweepConfig, card: ModelCard, corpus: CorpusConfig) -> None:
    """Raise CorpusError unless the evaluation's corpus fills its sequences: it is read until it does."""
    wanted, length = config.evaluation.sequences, config.harvest.context_length
    documents = tokenized_documents(config.model, card, corpus)
    found = sum(1 for _ in islice(pack_sequences(documents, length, card.bos, config.harvest.drop_first_positions), wanted))
    if found < wanted:
        raise CorpusError(
            f"evaluation.corpus: {corpus.source!r} has {found} sequences of {length} tokens, not {wanted}: lower evaluation.sequences or "
            "add text to the corpus"
        )


def check_shards(config: SweepConfig, card: ModelCard, stream: StreamSpec) -> None:
    """Raise InputError if the shards cannot be cut or read.

    Shards are cut into chunks, and read in the stream's order.
    """
    _check_chunks(config, card)
    Order.check(config.dataset, config.harvest.tokens // config.harvest.rows_per_shard, config.harvest.rows_per_shard, stream)


def _check_chunks(config: SweepConfig, card: ModelCard) -> None:
    """Raise InputError unless a shard's rows can be cut into equal chunks of a sensible size: a prime number of rows cannot."""
    rows = config.harvest.rows_per_shard
    for site in {hook.site for hook in hooks_of(config, card)}:
        spec = ArraySpec.of(site, rows, card.widths[site], STORED_DTYPES[config.harvest.dtype])
        if spec.chunks > 1 and spec.chunk_bytes < CHUNK_BYTES // 16:
            raise InputError(
                f"harvest.rows_per_shard: {rows} rows can only be cut into chunks of {spec.chunk_rows} rows: take a power of two, or a "
                "number with many divisors"
            )


def check_window(plan: SweepPlan, state: SweepState, room: int) -> None:
    """Raise InputError unless the server's window holds two batches of each stream left to train.

    It is divided among the streams that are read at once, where there is ``room`` for so many trainers.
    """
    train, window_bytes = plan.config.train, plan.config.server.window_mib << 20
    for part, now in zip(plan.passes, state.passes, strict=True):
        if todo := part.named(now.unfinished):
            at_once = min(train.at_once, room, part.trainers(todo))
            streams = streams_at_once(entries(train, todo), at_once, train.group)
            for hooks in dict.fromkeys(sae.hooks for sae in todo):
                row = sum(plan.card.widths[hook.site] for hook in hooks) * STORED_DTYPES[plan.config.harvest.dtype].itemsize
                capacity_of(window_bytes // streams, train.batch_size * row, part.stream(hooks).label)


def hooks_of(config: SweepConfig, card: ModelCard) -> Connection:
    """Return the hooks that the sweep file asks for. ModelError if the model lacks one."""
    return tuple(card.hooks(config.harvest.layers, config.harvest.sites))


def check_starts(card: ModelCard, bucket: Bucket, saes: Iterable[PlannedSae]) -> dict[str, str]:
    """Return what each finished SAE is that training starts from, by its place.

    Each is read once. Raises InputError if one is missing, or cannot become the SAE that is planned. The harvest will measure the hooks'
    scales; whether a start fits does not depend on them.
    """
    starts: dict[str, Sae] = {}
    checked = set()
    for sae in saes:
        place = sae.config.initial_sae
        if place is None or bucket.exists(sae.layout.config):
            continue
        if place not in starts:
            starts[place] = read_start(place)
        inputs, targets = (tuple(Port(hook.name, card.widths[hook.site], 1.0) for hook in hooks) for hooks in (sae.inputs, sae.targets))
        wiring = Wiring(inputs, targets)
        if (kind := (sae.config.model_copy(update={"sparsity": 0.0}).model_dump_json(), wiring.shape)) not in checked:
            started_from(sae.config, wiring, starts[place])
            checked.add(kind)
    return {place: repr(sae) for place, sae in starts.items()}


def check_rolling(part: Pass) -> None:
    """Check that rolling mode neither stalls nor deletes a dataset to keep.

    Raises InputError if it would stall, Conflict if it would delete a dataset that was harvested to be kept.
    """
    _check_not_kept(part)
    config, train = part.config, part.config.train
    if (trainers := part.trainers(part.saes)) > train.at_once:
        raise InputError(
            f"harvest.rolling: all {len(part.saes)} SAEs have to train at once, because shards are deleted behind them, which takes "
            f"{trainers} trainers, and train.at_once is {train.at_once}: raise it or train.group, or make several sweeps"
        )
    # A trainer may resume from its last checkpoint until the next one, so all shards between two checkpoints are kept.
    every = max(sae.config.checkpoint_every for sae in part.saes)
    needed, ahead = _shards_between(config, every), config.harvest.rolling
    if ahead is not None and ahead < needed:
        raise InputError(
            f"harvest.rolling: between two checkpoints ({every} steps) up to {needed} shards are needed, and "
            f"{ahead} may lie on disk: raise it, or lower train.checkpoint_every or server.shards_side_by_side"
        )


def _check_not_kept(part: Pass) -> None:
    if not part.bucket.exists(part.harvest.layout.rolling) and committed_shards(part.bucket, part.harvest.dataset):
        raise Conflict(
            f"dataset {part.harvest.dataset!r} was harvested to be kept, and rolling mode deletes shards that trainers have passed: leave "
            "harvest.rolling out, or choose another harvest.dataset"
        )


def _shards_between(config: SweepConfig, steps: int) -> int:
    """Count the shards that may be read between two checkpoints."""
    rows, shards = config.harvest.rows_per_shard, config.harvest.tokens // config.harvest.rows_per_shard
    largest, *_, smallest = group_sizes(shards, config.server.shards_side_by_side) * 2
    batches = max(1, smallest * rows // config.train.batch_size)  # of a group
    return min(shards, largest * (-(-(steps - 1) // batches) + 1))
