"""The way of the data: harvest, reader, server, each over what nothing can do without."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import torch
from groups import group_over_alone
from measure import Figure, alternate, timed
from prometheus_client import REGISTRY
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Gemma2Config

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.synthetic import make_dataset  # noqa: E402

from scopemill.activation_server.client import StreamClient  # noqa: E402
from scopemill.activation_server.config import ServerConfig  # noqa: E402
from scopemill.activation_server.server import ActivationServer  # noqa: E402
from scopemill.activation_server.stream_reader import StreamReader  # noqa: E402
from scopemill.deploy.demo.run import MODEL  # noqa: E402
from scopemill.deploy.demo.standard_library import write_corpus  # noqa: E402
from scopemill.harvester.actor import Harvester  # noqa: E402
from scopemill.harvester.config import CorpusConfig, HarvestConfig, ModelConfig  # noqa: E402
from scopemill.harvester.language_model.describe import describe  # noqa: E402
from scopemill.harvester.task import IN_FLIGHT, HarvestTask, identity  # noqa: E402
from scopemill.harvester.text.packed_text import load_sequences  # noqa: E402
from scopemill.proto.dataset import DatasetManifest, read_manifest  # noqa: E402
from scopemill.proto.layout import DatasetLayout  # noqa: E402
from scopemill.proto.storage.bucket import Bucket  # noqa: E402
from scopemill.proto.wire import StreamSpec  # noqa: E402

HARVEST_ROUNDS, HARVEST_WARM_UP, SHARDS_PER_ROUND = 3, 2, 4  # several shards in a round: the last one's write overlaps nothing
SHARDS = (HARVEST_ROUNDS + HARVEST_WARM_UP) * SHARDS_PER_ROUND
READER_ROUNDS, RING_ROUNDS = 9, 3
SEQUENCES = 64  # in a forward pass, of 128 tokens
THREADS = os.cpu_count() or 1
HOOKS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))  # of the dataset that is served


def wide_model(folder: Path) -> str:
    """A Gemma 2 of 6 layers and d = 768, untrained: as wide as the smallest models that SAEs are trained on."""
    config = Gemma2Config(
        vocab_size=2048, hidden_size=768, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=12, num_key_value_heads=4,
        head_dim=64, max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return str(folder)


def harvester(folder: Path, name: str, rows: int) -> tuple[Harvester, DatasetManifest]:
    """A harvester of 12 hooks of a model (all of its layers are run), prepared but with no shard made."""
    write_corpus(folder / "corpus")
    model = ModelConfig(name=name)
    card = describe(model)
    corpus = CorpusConfig(source=str(folder / "corpus" / "train.jsonl"), format="jsonl")
    config = HarvestConfig(
        layers=(1, 3, 5), sites=("resid_pre", "resid_post", "mlp_out", "attn_z"), tokens=SHARDS * rows, rows_per_shard=rows,
        context_length=128, sequences_per_forward=SEQUENCES, calibration_rows=4096, cpus=THREADS,
    )  # fmt: skip
    hooks = card.hooks(config.layers, config.sites)
    same = identity(model, card, corpus, config, hooks, 0)
    made = Harvester(HarvestTask(Bucket(str(folder)), "bench", model, card, corpus, config, tuple(hooks), 0, same, "bench"))
    return made, made.prepare()


def harvest_over_bare_forward(folder: Path, name: str, rows: int) -> Figure:
    """Tokens/s of the harvest (12 hooks, committed shards) over those of Hugging Face's forward, without logits, on the same batches."""
    made, manifest = harvester(folder, name, rows)
    bare = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
    shards = iter(range(manifest.shards))
    blocks = [load_sequences(Bucket(str(folder)), DatasetLayout("bench").packed(i)).tokens for i in range(SHARDS_PER_ROUND)]
    batches = [torch.from_numpy(b[i : i + SEQUENCES]).long() for b in blocks for i in range(0, len(b), SEQUENCES)]

    def harvest() -> None:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(made.harvest, islice(shards, SHARDS_PER_ROUND)))

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                bare(batch, use_cache=False)

    rounds = alternate({"forward": timed(forward), "harvest": timed(harvest)}, HARVEST_ROUNDS, HARVEST_WARM_UP)
    d = manifest.hooks[0].d
    return rounds.figure(f"harvest, {len(manifest.hooks)} hooks of d = {d}, shards on disk / bare forward", "forward", "harvest", ">= 0.95")


def reader_over_raw_files(folder: Path) -> Figure:
    """Bytes/s of the server's reader, checksums and batch assembly included, over reading the same files whole."""
    bucket = Bucket(str(folder))
    manifest = read_manifest(bucket, "bench")
    files = sorted((folder / DatasetLayout("bench").root / "shards").glob(f"*.zarr/{HOOKS[0]}/c/*/*"))
    spec = StreamSpec("bench", HOOKS[:1], 4096, 0, 4)
    # As much reused memory as the reader has: a chunk in use and one ahead for each shard of a group.
    buffers = [bytearray(max(f.stat().st_size for f in files)) for _ in range(2 * spec.shards_side_by_side)]

    reader = StreamReader(bucket, manifest, spec)  # one for all rounds, as in the server: its memory is reused
    slot, batches, stop = memoryview(bytearray(reader.batch_bytes)), count(), 2**62

    def through_reader() -> None:
        for _ in range(reader.batches_per_epoch):
            reader.read(next(batches), slot, stop)

    def raw() -> None:
        for i, file in enumerate(files):
            with open(file, "rb", buffering=0) as f:
                f.readinto(buffers[i % len(buffers)])

    rounds = alternate({"raw files": timed(raw), "reader": timed(through_reader)}, READER_ROUNDS)
    return rounds.figure(f"server's reader / raw files, d = {manifest.hooks[0].d}", "raw files", "reader", ">= 0.9")


def served_over_read(folder: Path, trainers: int = 4) -> Figure:
    """Bytes served to trainers over bytes read from the bucket, of one epoch, from the server's own counters."""
    bucket, spec = Bucket(str(folder)), StreamSpec("bench", HOOKS[:1], 2048, 0, 4)
    server = ActivationServer(bucket, ServerConfig(window_mib=64), 1)
    batches = StreamReader(bucket, read_manifest(bucket, "bench"), spec).batches_per_epoch

    def train(name: str) -> None:
        client = StreamClient(server.address, spec, name, 0, batches)
        for _ in client:
            pass
        client.close()

    for i in range(trainers):
        server.expect(spec, str(i), 0, batches)
    threads = [threading.Thread(target=train, args=(str(i),)) for i in range(trainers)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    served, read = (REGISTRY.get_sample_value(f"scopemill_server_bytes_{n}_total", {"stream": spec.label}) for n in ("served", "read"))
    server.stop()
    raw = {"served, MiB": served / 2**20, "read, MiB": read / 2**20}
    return Figure(f"bytes served / bytes read, {trainers} trainers", served / read, "4", raw)


LOCAL_TRAINER = """
import sys
import numpy as np
from scopemill.activation_server import client  # noqa: E402
from scopemill.proto.wire import StreamSpec  # noqa: E402
address, name, way, first, batches, size, hooks = *sys.argv[1:7], sys.argv[7:]
if way == "socket":
    client.this_host = lambda: ""
mine = {}
def take(arrays):  # what a trainer does with them: one copy, into memory that it has
    for i, array in enumerate(arrays):
        np.copyto(mine.setdefault(i, np.empty_like(array)), array)
stream = client.StreamClient(address, StreamSpec("bench", tuple(hooks), int(size), 0, 4), name, 0, int(batches), take=take)
for k, _ in stream:
    if k == int(first):
        print(flush=True)
        sys.stdin.readline()
print(flush=True)
stream.close()
"""


def ring_over_socket(folder: Path, trainers: int = 4, first: int = 48, batches: int = 160) -> Figure:
    """Bytes/s that trainers in processes of their own get from the server of their host: shared memory over TCP."""
    bucket = Bucket(str(folder))
    spec = StreamSpec("bench", HOOKS, 4096, 0, 4)

    def serve(way: str) -> float:
        server = ActivationServer(bucket, ServerConfig(window_mib=64), 1)
        command = [sys.executable, "-c", LOCAL_TRAINER, server.address]
        processes = []
        for i in range(trainers):
            server.expect(spec, str(i), 0, batches)
            arguments = [*command, str(i), way, str(first), str(batches), str(spec.batch_size), *HOOKS]
            processes.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        [process.stdout.readline() for process in processes]

        def go() -> None:
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
            [process.stdout.readline() for process in processes]

        took = timed(go)()
        [process.communicate() for process in processes]
        server.stop()
        return took

    rounds = alternate({"TCP": lambda: serve("socket"), "shared memory": lambda: serve("ring")}, RING_ROUNDS)
    return rounds.figure(f"{trainers} trainers of the server's host, shared memory / TCP", "TCP", "shared memory", ">= 3")


def figures() -> Iterator[Figure]:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        yield harvest_over_bare_forward(Path(temporary), str(MODEL), 16_384)
    with tempfile.TemporaryDirectory() as temporary:
        yield harvest_over_bare_forward(Path(temporary), wide_model(Path(temporary) / "model"), 4096)
    with tempfile.TemporaryDirectory() as temporary:
        make_dataset(Bucket(temporary), "bench", {HOOKS[0]: 768}, shards=8, rows=16_384, dtype="bfloat16")
        yield reader_over_raw_files(Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_dataset(Bucket(temporary), "bench", dict.fromkeys(HOOKS, 192), shards=8, rows=32_768, dtype="bfloat16")
        yield reader_over_raw_files(folder)
        yield served_over_read(folder)
        yield ring_over_socket(folder)
        yield group_over_alone(folder, "bench", HOOKS[0])
