"""A whole harvest, row by row against the plain model: what lies on disk is what the labels say, once, and scaled as the manifest says.

The reference here packs and runs the corpus in the plainest way: lists, and Hugging Face's model without a bridge.
"""

import random
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM, AutoTokenizer

from scopemill.harvester import actor
from scopemill.harvester.actor import Harvester
from scopemill.harvester.config import CorpusConfig, HarvestConfig
from scopemill.harvester.shard import write_shard
from scopemill.harvester.task import IN_FLIGHT, HarvestTask, identity
from scopemill.harvester.text.packed_text import load_sequences
from scopemill.proto import metrics
from scopemill.proto.dataset import committed_shards, read_commit, read_manifest, vector
from scopemill.proto.errors import Conflict, CorpusError, Stopped
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record

HOOKS = (Hook(1, "resid_post"), Hook(3, "mlp_out"), Hook(4, "attn_z"))
LAYOUT = DatasetLayout("tiny")
CONTEXT, ROWS, SHARDS, RESERVED = 32, 512, 3, 5
SPECIAL = {0, 1, 2}
CONFIG = HarvestConfig(
    layers=(1, 3, 4), sites=("resid_post", "mlp_out", "attn_z"), tokens=ROWS * SHARDS + 100, context_length=CONTEXT, rows_per_shard=ROWS,
    calibration_rows=10**6, sequences_per_forward=7, seed=11, cpus=1,
)  # fmt: skip

Place = tuple[int, int]  # document, position


@dataclass
class Reference:
    """The corpus as the harvest should see it: the order of its rows, and for each its token and its raw activations."""

    sequences: list[list[tuple[int, int, int]]]  # (token, document, position) of each place
    raw: dict[str, dict[Place, np.ndarray]]

    def rows(self, first: int = RESERVED) -> list[Place]:
        return [(d, p) for sequence in self.sequences[first:] for token, d, p in sequence if token not in SPECIAL]

    def blocks(self, wanted: int, shards: int = SHARDS) -> list[list[Place]]:
        """All rows of the whole sequences that hold at least ``wanted`` rows, for each shard."""
        blocks: list[list[Place]] = []
        start = RESERVED
        for _ in range(shards):
            blocks.append([])
            while len(blocks[-1]) < wanted:
                blocks[-1] += [(d, p) for token, d, p in self.sequences[start] if token not in SPECIAL]
                start += 1
        return blocks


@dataclass
class Setting:
    """Everything that a harvester is made of."""

    bucket: Bucket
    model: object
    card: object
    corpus: CorpusConfig
    config: HarvestConfig = CONFIG
    reserved: int = RESERVED

    @property
    def identity(self) -> dict:
        return identity(self.model, self.card, self.corpus, self.config, HOOKS, self.reserved)

    @property
    def task(self) -> HarvestTask:
        parts = (self.model, self.card, self.corpus, self.config, tuple(HOOKS), self.reserved, self.identity)
        return HarvestTask(self.bucket, "tiny", *parts, text="tiny")

    def harvester(self) -> Harvester:
        return Harvester(self.task)

    def harvest(self, order=range(SHARDS), threads: int = 1) -> "Setting":
        harvester = self.harvester()
        assert harvester.prepare().shards == SHARDS
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(harvester.harvest, order)) == list(order)
        return self

    def array(self, shard: int, name: str) -> np.ndarray:
        """An array of a shard as zarr reads it, bfloat16 as float32."""
        array = zarr.open_group(self.bucket.place(LAYOUT.shard(shard)), mode="r")[name]
        x = array[:]
        return (x.astype("<u4") << 16).view("<f4") if array.attrs.get("logical_dtype") == "bfloat16" else x

    def places(self, shard: int) -> list[Place]:
        return list(zip(self.array(shard, "document").tolist(), self.array(shard, "position").tolist(), strict=True))

    def objects(self) -> dict[str, bytes]:
        return {path: self.bucket.read(path) for path in self.bucket.find(LAYOUT.root)}


@pytest.fixture(autouse=True)
def light_harvesters(lm, monkeypatch) -> None:
    """Harvesters take the model that is loaded already."""
    monkeypatch.setattr(actor, "LanguageModel", lambda model: lm)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> CorpusConfig:
    """Forty small files of Python, one of which holds a special token."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    words = "name value index result items left right other parent child first last total".split()
    for number in range(40):
        lines = []
        for _ in range(generator.randint(1, 12)):
            a, b, c = generator.sample(words, 3)
            lines.append(f"def {a}_{b}(self, {c}):\n    return self.{b}[{generator.randint(0, 99)}] + {c}.{a}\n")
        (folder / f"{number:02d}.py").write_text("\n".join(lines) + ("# <eos>\n" if number == 20 else ""))
    (folder / "07 is blank.py").write_text("\n  \n")
    return CorpusConfig(source=str(folder), format="files")


@pytest.fixture(scope="module")
def reference(corpus, model) -> Reference:
    tokenizer = AutoTokenizer.from_pretrained(model.name)
    texts = [path.read_text() for path in sorted(Path(corpus.source).iterdir())]
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts if text.strip()]
    stream = [place for d, ids in enumerate(documents) for place in [(2, d, -1), *((t, d, p) for p, t in enumerate(ids))]]
    sequences = []
    while True:
        opening = [] if stream and stream[0][2] == -1 else [(2, stream[0][1], -1)] if stream else []
        length = CONTEXT - len(opening)
        if len(stream) < length:
            break
        sequences.append(opening + stream[:length])
        stream = stream[length:]

    plain = AutoModelForCausalLM.from_pretrained(model.name, dtype=torch.float32, attn_implementation="eager").eval()
    seen: dict[str, torch.Tensor] = {}

    def output_of(name):
        return lambda module, inputs, output: seen.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    layers = plain.model.layers
    layers[1].register_forward_hook(output_of("blocks.1.hook_resid_post"))
    layers[3].post_feedforward_layernorm.register_forward_hook(output_of("blocks.3.hook_mlp_out"))
    layers[4].self_attn.o_proj.register_forward_pre_hook(lambda module, inputs: seen.__setitem__("blocks.4.attn.hook_z", inputs[0]))
    with torch.inference_mode():
        plain(torch.tensor([[token for token, _, _ in sequence] for sequence in sequences]))
    raw = {
        name: {(d, p): x[s, t].numpy() for s, sequence in enumerate(sequences) for t, (_, d, p) in enumerate(sequence) if p >= 0}
        for name, x in seen.items()
    }
    return Reference(sequences, raw)


@pytest.fixture
def setting(bucket, model, card, corpus) -> Setting:
    return Setting(bucket, model, card, corpus)


@pytest.fixture(scope="module")
def done(tmp_path_factory, lm, model, card, corpus) -> Setting:
    """A harvest in bfloat16, as is the default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actor, "LanguageModel", lambda model: lm)
        return Setting(Bucket(str(tmp_path_factory.mktemp("bucket"))), model, card, corpus).harvest()


def test_the_tiny_corpus_is_worth_testing_with(reference):
    assert len(reference.rows()) > ROWS * SHARDS
    assert any(token == 1 for sequence in reference.sequences for token, _, p in sequence if p >= 0), "an EOS inside a document"
    assert set(reference.raw) == {hook.name for hook in HOOKS}


def test_each_shard_holds_the_rows_of_its_bucket_each_once(done, reference):
    for shard, block in enumerate(reference.blocks(ROWS)):
        assert sorted(done.places(shard)) == sorted(block[:ROWS])


def test_no_row_is_special_and_each_says_its_token(done, reference):
    tokens = {(d, p): token for sequence in reference.sequences for token, d, p in sequence}
    for shard in range(SHARDS):
        found = done.array(shard, "token_id").tolist()
        assert found == [tokens[place] for place in done.places(shard)]
        assert SPECIAL.isdisjoint(found)


def test_rows_are_shuffled_within_their_shard(done, reference):
    for shard, block in enumerate(reference.blocks(ROWS)):
        order = [block.index(place) for place in done.places(shard)]
        assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.2
    assert done.places(0) != done.places(1)


def test_every_row_is_the_models_activation_over_the_scale_in_bfloat16(done, reference):
    manifest = read_manifest(done.bucket, "tiny")
    for hook in manifest.hooks:
        for shard in range(SHARDS):
            stored = done.array(shard, hook.name)
            raw = np.stack([reference.raw[hook.name][place] for place in done.places(shard)])
            expected = torch.from_numpy(raw / hook.scale).to(torch.bfloat16).float().numpy()
            # Two programs agree to about 1e-6; where that lies across a border between two bfloat16, they differ by one.
            assert (stored == expected).mean() > 0.99
            np.testing.assert_allclose(stored, raw / hook.scale, rtol=2**-8 * 1.05, atol=1e-5)


def test_every_row_is_the_models_activation_over_the_scale_in_float32(setting, reference):
    setting.config = CONFIG.model_copy(update={"dtype": "float32"})
    setting.harvest()
    for hook in read_manifest(setting.bucket, "tiny").hooks:
        for shard in range(SHARDS):
            raw = np.stack([reference.raw[hook.name][place] for place in setting.places(shard)])
            np.testing.assert_allclose(setting.array(shard, hook.name) * hook.scale, raw, rtol=1e-3, atol=1e-4 * hook.scale)


def test_the_mean_squared_norm_of_the_dataset_is_one(done):
    for hook in HOOKS:
        x = np.concatenate([done.array(shard, hook.name) for shard in range(SHARDS)]).astype(np.float64)
        assert (x**2).sum(1).mean() == pytest.approx(1, rel=0.02)


def test_scale_and_mean_are_those_of_the_calibration_rows(done, reference):
    manifest = read_manifest(done.bucket, "tiny")
    rows = [place for block in reference.blocks(ROWS) for place in block]  # calibration_rows asks for all of them
    assert manifest.calibration_rows == len(rows)
    for hook in manifest.hooks:
        raw = np.stack([reference.raw[hook.name][place] for place in rows]).astype(np.float64)
        assert hook.scale == pytest.approx(np.sqrt((raw**2).sum(1).mean()), rel=1e-5)
        np.testing.assert_allclose(hook.mean_vector, raw.mean(0), atol=1e-5 * hook.scale)


def test_calibration_takes_a_sample_of_the_size_that_is_asked_for(setting, reference):
    setting.config = CONFIG.model_copy(update={"calibration_rows": 300})
    manifest = setting.harvester().prepare()
    assert 250 <= manifest.calibration_rows <= 400
    for hook in manifest.hooks:
        raw = np.stack(list(reference.raw[hook.name].values())).astype(np.float64)
        assert hook.scale == pytest.approx(np.sqrt((raw**2).sum(1).mean()), rel=0.25)


def test_a_commit_holds_the_sums_of_what_zarr_reads(done):
    for shard in range(SHARDS):
        commit = read_commit(done.bucket, "tiny", shard)
        assert (commit.rows, commit.dropped_outliers) == (ROWS, 0)
        for hook in HOOKS:
            x = done.array(shard, hook.name).astype(np.float64)
            sums = commit.sums[hook.name]
            assert sums.count == ROWS
            np.testing.assert_allclose(vector(sums.sum_x), x.sum(0), rtol=1e-12, atol=1e-12)
            assert sums.sum_squared_norm == pytest.approx((x**2).sum(), rel=1e-12)
            assert sums.max_norm == pytest.approx(np.sqrt((x**2).sum(1)).max(), rel=1e-12)


def test_the_manifest_says_what_was_harvested(done):
    manifest = read_manifest(done.bucket, "tiny")
    assert [(hook.name, hook.d, hook.norm_limit) for hook in manifest.hooks] == [(hook.name, 192, None) for hook in HOOKS]
    assert (manifest.rows_per_shard, manifest.shards, manifest.seed, manifest.dtype) == (ROWS, SHARDS, 11, "bfloat16")
    assert (manifest.model, manifest.context_length) == (done.card.name, CONTEXT)
    assert committed_shards(done.bucket, "tiny") == set(range(SHARDS))


def test_a_harvest_in_another_order_and_from_two_threads_writes_the_same_bytes(done, setting):
    setting.harvest(order=(2, 0, 1), threads=2)
    assert setting.objects() == done.objects()


def test_harvesters_that_write_the_same_shard_at_once_leave_one_whole_shard(done, setting, monkeypatch):
    setting.harvester().prepare()
    together, forward = threading.Barrier(2, timeout=60), threading.Lock()

    def write_together(*args):
        together.wait()
        return write_shard(*args)

    def harvest(harvester: Harvester) -> int:
        harvester._computing = forward  # they share one model here, which runs one pass at a time
        return harvester.harvest(1)

    monkeypatch.setattr(actor, "write_shard", write_together)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(harvest, [setting.harvester(), setting.harvester()])) == [1, 1]
    below = {path: data for path, data in setting.objects().items() if "/shards/" in path or "/commits/" in path}
    assert below and below == {path: done.objects()[path] for path in below}
    assert committed_shards(setting.bucket, "tiny") == {1}


def test_a_committed_shard_is_not_done_again(done, monkeypatch):
    monkeypatch.setattr(actor, "LanguageModel", lambda model: pytest.fail("the model is not needed"))
    monkeypatch.setattr(Bucket, "write", lambda *_: pytest.fail("nothing is written"))
    harvester = done.harvester()
    harvester.prepare()
    assert [harvester.harvest(shard) for shard in range(SHARDS)] == list(range(SHARDS))
    assert harvester.rows_done() == 0


def test_a_shard_that_was_lost_before_its_commit_is_made_again(done, setting):
    setting.harvest()
    expected = setting.objects()
    setting.bucket.remove(LAYOUT.commit(1))
    setting.bucket.write(f"{LAYOUT.array(1, HOOKS[0].name)}/c/0/0", b"half of")
    setting.bucket.remove(f"{LAYOUT.array(1, 'document')}/c/0")
    setting.harvest()
    assert setting.objects() == expected


def test_a_preparation_that_was_cut_short_is_finished_the_same(done, setting):
    setting.harvester().prepare()
    expected = setting.objects()
    for lost in ([LAYOUT.manifest], [LAYOUT.manifest, LAYOUT.packing, LAYOUT.packed(2), LAYOUT.reserved]):
        for path in lost:
            setting.bucket.remove(path)
        setting.harvester().prepare()
        assert setting.objects() == expected


def test_a_harvester_counts_its_rows(setting):
    harvester = setting.harvester()
    harvester.prepare()
    assert harvester.rows_done() == 0
    harvester.harvest(0)
    assert harvester.rows_done() == ROWS


def test_what_a_harvester_did_is_exposed_as_metrics(setting):
    harvester, address = setting.harvester(), metrics.expose()
    assert address.startswith("127.0.0.1:")

    def exposed(name: str) -> float:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            values = [line.split()[-1] for line in answer.read().decode().splitlines() if line.startswith(f'{name}{{dataset="tiny"}}')]
        return float(values[0]) if values else 0.0

    names = ("scopemill_harvest_rows_total", "scopemill_harvest_shards_total", "scopemill_harvest_bytes_total")
    before = [exposed(name) for name in names]
    harvester.prepare()
    harvester.harvest(0)
    assert [exposed(name) - past for name, past in zip(names, before, strict=True)] == [ROWS, 1, ROWS * (3 * 192 * 2 + 16)]


def test_reserved_sequences_are_kept_apart_and_never_harvested(done, reference):
    reserved = load_sequences(done.bucket, LAYOUT.reserved)
    assert reserved.tokens.tolist() == [[token for token, _, _ in sequence] for sequence in reference.sequences[:RESERVED]]
    held = {(d, p) for sequence in reference.sequences[:RESERVED] for _, d, p in sequence}
    for shard in range(SHARDS):
        assert held.isdisjoint(done.places(shard))


def test_without_reserved_sequences_the_harvest_begins_with_the_first(setting, reference):
    setting.reserved = 0
    harvester = setting.harvester()
    harvester.prepare()
    harvester.harvest(0)
    assert set(setting.places(0)) == set(reference.rows(first=0)[:ROWS])
    assert not setting.bucket.exists(LAYOUT.reserved)


@dataclass
class Filter:
    """What a filter should do to two shards whose buckets have two fifths more rows than they need."""

    blocks: list[list[Place]]
    relative: dict[Place, float]  # the largest norm of a place over the median norm, of all hooks
    medians: dict[str, float]
    factor: float

    @staticmethod
    def of(reference: Reference) -> "Filter":
        blocks = reference.blocks(ROWS + int(0.4 * ROWS), shards=2)
        places = blocks[0] + blocks[1]
        norms = {h.name: np.array([np.linalg.norm(reference.raw[h.name][place].astype(np.float64)) for place in places]) for h in HOOKS}
        medians = {name: float(np.median(x)) for name, x in norms.items()}
        relative = np.max([norms[name] / medians[name] for name in norms], axis=0)
        # About a seventh is to go; the border lies in a wide gap, so that rounding decides nothing.
        candidates = np.sort(relative)[int(0.8 * len(places)) : int(0.9 * len(places))]
        at = int(np.diff(candidates).argmax())
        return Filter(blocks, dict(zip(places, relative, strict=True)), medians, float(candidates[at : at + 2].mean()))

    def kept(self, shard: int) -> list[Place]:
        return [place for place in self.blocks[shard] if self.relative[place] <= self.factor]


@pytest.fixture(scope="module")
def expected(reference) -> Filter:
    return Filter.of(reference)


@pytest.fixture
def filtered(setting, expected) -> Setting:
    setting.config = CONFIG.model_copy(update={"outlier_norm": expected.factor, "outlier_spare": 0.4, "tokens": 2 * ROWS})
    return setting


def test_the_filter_drops_the_rows_above_its_limit_and_no_others(filtered, expected):
    harvester = filtered.harvester()
    for hook in harvester.prepare().hooks:
        assert hook.norm_limit == pytest.approx(expected.factor * expected.medians[hook.name], rel=1e-5)
    for shard, block in enumerate(expected.blocks):
        kept = expected.kept(shard)
        assert ROWS < len(kept) < len(block) - 10, "the filter has something to do, and enough is left"
        harvester.harvest(shard)
        assert read_commit(filtered.bucket, "tiny", shard).dropped_outliers == len(block) - len(kept)
        assert sorted(filtered.places(shard)) == sorted(kept[:ROWS])


def test_a_row_above_the_limit_of_any_one_hook_is_dropped(filtered, reference, expected):
    harvester, block = filtered.harvester(), expected.blocks[0]
    manifest = harvester.prepare()
    hooks, above = [], {}
    for hook in manifest.hooks:  # one row in fifteen lies above the limit of each
        norms = {place: float(np.linalg.norm(reference.raw[hook.name][place].astype(np.float64))) for place in block}
        limit = float(np.mean(np.sort(list(norms.values()))[-len(block) // 15 :][:2]))
        above[hook.name] = {place for place in block if norms[place] > limit}
        hooks.append(hook.model_copy(update={"norm_limit": limit}))
    for name in above:
        assert above[name] - set().union(*(above[other] for other in above if other != name)), "each has rows that only it drops"
    filtered.bucket.write(LAYOUT.manifest, checksummed_record(manifest.model_copy(update={"hooks": tuple(hooks)}).model_dump(mode="json")))
    harvester.harvest(0)
    kept = [place for place in block if place not in set().union(*above.values())]
    assert len(kept) > ROWS
    assert read_commit(filtered.bucket, "tiny", 0).dropped_outliers == len(block) - len(kept)
    assert sorted(filtered.places(0)) == sorted(kept[:ROWS])


def test_the_scale_is_that_of_the_rows_that_the_filter_keeps(filtered):
    harvester = filtered.harvester()
    harvester.prepare()
    for shard in range(2):
        harvester.harvest(shard)
    for hook in HOOKS:
        x = np.concatenate([filtered.array(shard, hook.name) for shard in range(2)]).astype(np.float64)
        assert (x**2).sum(1).mean() == pytest.approx(1, rel=0.02)


def test_a_filter_that_leaves_too_few_rows_is_answered_with_what_to_change(setting):
    setting.config = CONFIG.model_copy(update={"outlier_norm": 1.01, "outlier_spare": 0.01})
    harvester = setting.harvester()
    harvester.prepare()
    with pytest.raises(CorpusError) as caught:
        harvester.harvest(0)
    said = str(caught.value)
    assert "harvest.outlier_spare (0.01)" in said and "harvest.outlier_norm (1.01)" in said and "\n" not in said
    assert committed_shards(setting.bucket, "tiny") == set()


@pytest.mark.timeout(60)
def test_failed_shards_do_not_block_those_that_follow(setting):
    setting.harvester().prepare()
    packed = setting.bucket.read(LAYOUT.packed(0))
    setting.bucket.remove(LAYOUT.packed(0))
    harvester = setting.harvester()
    for _ in range(IN_FLIGHT + 1):
        with pytest.raises(Exception, match=LAYOUT.packed(0)):
            harvester.harvest(0)
    setting.bucket.write(LAYOUT.packed(0), packed)
    assert harvester.harvest(0) == 0


def test_a_harvester_that_is_stopped_keeps_what_is_committed(setting):
    harvester = setting.harvester()
    harvester.prepare()
    harvester.harvest(0)
    harvester.stop()
    for _ in range(IN_FLIGHT + 1):
        with pytest.raises(Stopped):
            harvester.harvest(1)
    assert harvester.harvest(0) == 0
    assert committed_shards(setting.bucket, "tiny") == {0}


@pytest.mark.parametrize("begun", ["manifest", "packing"])
@pytest.mark.parametrize(
    ("field", "change"),
    [("harvest.seed", {"seed": 12}), ("harvest.dtype", {"dtype": "float32"}), ("harvest.rows_per_shard", {"rows_per_shard": 256})],
)
def test_a_dataset_of_another_identity_is_a_conflict_that_names_the_field(setting, begun, field, change):
    setting.harvester().prepare()
    if begun == "packing":
        setting.bucket.remove(LAYOUT.manifest)
    setting.task.check_place()
    with pytest.raises(Conflict, match=f"was made with {field} = .* and this run asks for"):
        replace(setting, config=CONFIG.model_copy(update=change)).task.check_place()


def test_what_does_not_decide_the_bytes_is_no_conflict(setting):
    setting.harvester().prepare()
    quicker = CONFIG.model_copy(update={"sequences_per_forward": 3, "actors": 4, "cpus": 2.0})
    replace(setting, config=quicker).task.check_place()


def test_another_model_corpus_or_hook_is_a_conflict(setting, card):
    setting.harvester().prepare()
    others = {
        "model": replace(setting, card=replace(card, fingerprint="another")).task,
        "model.dtype": replace(setting, model=setting.model.model_copy(update={"dtype": "bfloat16"})).task,
        "corpus.source": replace(setting, corpus=CorpusConfig(source="elsewhere", format="files")).task,
        "reserved_sequences": replace(setting, reserved=6).task,
        "hooks": replace(setting.task, identity=identity(setting.model, card, setting.corpus, CONFIG, HOOKS[:2], RESERVED)),
    }
    for field, other in others.items():
        with pytest.raises(Conflict, match=f"was made with {field} = "):
            other.check_place()


def test_a_corpus_shorter_than_one_shard_is_answered_with_what_to_change(setting):
    setting.config = CONFIG.model_copy(update={"rows_per_shard": 10**5, "tokens": 10**5})
    with pytest.raises(CorpusError, match=r"shorter than one shard: lower harvest.rows_per_shard \(100000\)"):
        setting.harvester().prepare()
    assert not setting.bucket.exists(LAYOUT.manifest)


def test_a_corpus_shorter_than_what_evaluation_reserves_is_answered(setting, reference):
    setting.reserved = 10**4
    with pytest.raises(CorpusError, match=f"has {len(reference.sequences)} sequences; evaluation alone reserves 10000"):
        setting.harvester().prepare()


def test_a_corpus_shorter_than_asked_for_gives_the_shards_that_it_fills(setting, reference):
    setting.config = CONFIG.model_copy(update={"tokens": 10**6})
    shards = setting.harvester().prepare().shards
    assert SHARDS <= shards <= len(reference.rows()) // ROWS
    reference.blocks(ROWS, shards)
    with pytest.raises(IndexError):
        reference.blocks(ROWS, shards + 1)
