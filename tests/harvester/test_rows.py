"""Which tokens are rows, through a whole harvest: what roles say, rows of token ids, and the first positions of each sequence."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zarr
from support.chat_templates import GEMMA

from scopemill.activation_server.mixing import measure_mixing
from scopemill.evaluator.config import EvaluationConfig
from scopemill.evaluator.fidelity.actor import load_text
from scopemill.harvester import actor
from scopemill.harvester.actor import Harvester
from scopemill.harvester.config import CorpusConfig, HarvestConfig, ModelConfig
from scopemill.harvester.language_model.describe import load_tokenizer
from scopemill.harvester.task import HarvestTask, identity
from scopemill.harvester.text.checks import check_corpus
from scopemill.harvester.text.packed_text import load_sequences, what_was_read
from scopemill.proto.dataset import read_manifest
from scopemill.proto.errors import CorpusError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

HOOK, SPECIAL, RESERVED, SHARDS = Hook(1, "resid_post"), {0, 1, 2}, 4, 2
LAYOUT = DatasetLayout("rows")
CONFIG = HarvestConfig(
    layers=(1,), sites=("resid_post",), tokens=256, context_length=32, rows_per_shard=128, calibration_rows=200, sequences_per_forward=8
)  # fmt: skip
TALK = [
    ["what does this return?", "return self.value", "and now?", "def f(x):\n    return x + 1"],
    ["import os", "os.path.join(a, b)"],
    ["raise ValueError", "try:\n    pass\nexcept ValueError as error:\n    raise"],
]


@pytest.fixture(autouse=True)
def light_harvesters(lm, monkeypatch) -> None:
    monkeypatch.setattr(actor, "LanguageModel", lambda model: lm)


@pytest.fixture(scope="module")
def chat_model(model, tmp_path_factory) -> ModelConfig:
    """The demo's model with a chat template, as an instruction-tuned model has it."""
    folder = tmp_path_factory.mktemp("model") / "chatting"
    shutil.copytree(model.name, folder)
    (folder / "chat_template.jinja").write_text(GEMMA)
    return ModelConfig(name=str(folder))


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [
        [{"role": ("user", "assistant")[i % 2], "content": f"{c} # {number}"} for i, c in enumerate(TALK[number % 3])]
        for number in range(60)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


@dataclass
class Made:
    """A harvest of two shards, and what it was made of."""

    bucket: Bucket
    task: HarvestTask

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """(token, document, position) of every row."""
        for shard in range(SHARDS):
            group = zarr.open_group(self.bucket.place(LAYOUT.shard(shard)), mode="r")
            yield from zip(*(group[name][:].tolist() for name in ("token_id", "document", "position")), strict=True)

    def activations(self) -> list[np.ndarray]:
        return [zarr.open_group(self.bucket.place(LAYOUT.shard(s)), mode="r")[HOOK.name][:] for s in range(SHARDS)]


@pytest.fixture
def make(bucket, card, chat_model, tmp_path):
    def made(corpus: CorpusConfig, config: HarvestConfig = CONFIG, model: ModelConfig = chat_model, place: str = "bucket") -> Made:
        to = Bucket(str(tmp_path / place))
        same = identity(model, card, corpus, config, [HOOK], RESERVED)
        task = HarvestTask(to, "rows", model, card, corpus, config, (HOOK,), RESERVED, same, text="rows")
        harvester = Harvester(task)
        assert harvester.prepare().shards == SHARDS
        for shard in range(SHARDS):
            harvester.harvest(shard)
        return Made(to, task)

    return made


def test_only_what_the_assistant_says_is_harvested_and_evaluated(make, chats, chat_model, card):
    corpus = CorpusConfig(source=str(chats), format="jsonl", holds="messages", roles=("assistant",))
    assert corpus.column == "messages"
    made = make(corpus)
    tokenizer = load_tokenizer(chat_model)
    written = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(row, tokenize=False).removeprefix("<bos>") for row in written]
    encoded = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    rows = list(made.rows())
    assert len(set(rows)) == len(rows) == 256
    for token, document, position in rows:
        assert encoded[document]["input_ids"][position] == token and token not in SPECIAL
        start, end = encoded[document]["offset_mapping"][position]
        answers = [m["content"] for m in written[document] if m["role"] == "assistant"]
        places = [(texts[document].index(answer), texts[document].index(answer) + len(answer)) for answer in answers]
        assert any(start < b and end > a for a, b in places), texts[document][start:end]
    assert read_manifest(made.bucket, "rows").calibration_rows >= 100
    assert what_was_read(made.bucket, LAYOUT).startswith("1 files, ")
    stream = StreamSpec(dataset="rows", hooks=(HOOK.name,), batch_size=64, seed=0, shards_side_by_side=2)
    mixing = measure_mixing(made.bucket, read_manifest(made.bucket, "rows"), stream)
    assert mixing is not None and mixing.within_group == pytest.approx(1, abs=0.4) and mixing.shards == 2
    reserved = load_sequences(made.bucket, LAYOUT.reserved)
    text = load_text(made.bucket, "rows", chat_model, card, EvaluationConfig(sequences=RESERVED), 32)
    np.testing.assert_array_equal(text.is_row, reserved.row_mask(card.special))
    assert 0.1 < text.is_row.float().mean() < 0.7
    own = EvaluationConfig(sequences=RESERVED, corpus=corpus)
    np.testing.assert_array_equal(load_text(made.bucket, "rows", chat_model, card, own, 32).is_row, text.is_row)


def test_rows_of_token_ids_give_the_bits_of_their_text(make, chat_model, tmp_path):
    texts = [f"def function_{n}(value):\n    return value * {n}\n" * 3 for n in range(60)]
    tokenizer = load_tokenizer(chat_model)
    plain = tmp_path / "text.parquet"
    parquet.write_table(pa.table({"text": texts}), plain)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    tokens = tmp_path / "tokens.parquet"
    parquet.write_table(pa.table({"input_ids": [row if n % 2 else [2, *row] for n, row in enumerate(ids)]}), tokens)  # some with BOS
    of_text = make(CorpusConfig(source=str(plain), format="parquet"), place="text")
    of_tokens = make(CorpusConfig(source=str(tokens), format="parquet", holds="tokens"), place="tokens")
    assert list(of_text.rows()) == list(of_tokens.rows())
    for x, y in zip(of_text.activations(), of_tokens.activations(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_first_positions_are_dropped_in_training_and_evaluation(make, chats, chat_model, card):
    corpus = CorpusConfig(source=str(chats), format="jsonl", holds="messages")
    config = CONFIG.model_copy(update={"drop_first_positions": 5})
    plain, made = make(corpus, place="plain"), make(corpus, config, place="dropped")
    sequences = [load_sequences(made.bucket, LAYOUT.packed(shard)) for shard in range(SHARDS)]
    early = {
        (int(t), int(d), int(p))
        for s in sequences
        for t, d, p in zip(s.tokens[:, :5].ravel(), s.document[:, :5].ravel(), s.position[:, :5].ravel(), strict=True)
    }
    assert not early & set(made.rows()) and early & set(plain.rows())
    for evaluation in (EvaluationConfig(sequences=RESERVED), EvaluationConfig(sequences=RESERVED, corpus=corpus)):
        text = load_text(made.bucket, "rows", chat_model, card, evaluation, 32, 5)
        assert not text.is_row[:, :5].any() and text.is_row[:, 5:].float().mean() > 0.7


def test_new_fields_at_their_defaults_leave_the_identity_and_the_packed_files_as_they_were(make, chats, card, model):
    corpus = CorpusConfig(source="somewhere", format="jsonl")
    now = identity(model, card, corpus, CONFIG, [HOOK], RESERVED)
    assert sorted(key for key in now if key.startswith("corpus.")) == [
        f"corpus.{k}" for k in ("column", "format", "source", "split", "subset")
    ]
    assert "harvest.drop_first_positions" not in now
    for changed in (
        identity(model, card, CorpusConfig(source="somewhere", format="jsonl", holds="tokens"), CONFIG, [HOOK], RESERVED),
        identity(model, card, corpus, CONFIG.model_copy(update={"drop_first_positions": 1}), [HOOK], RESERVED),
    ):
        assert changed != now
    made = make(CorpusConfig(source=str(chats), format="jsonl", holds="messages"))
    assert b'"wanted"' not in made.bucket.read(LAYOUT.packed(0)) + made.bucket.read(LAYOUT.reserved)


def check(card, model: ModelConfig, path: Path, **fields) -> str:
    """What is said at plan time: one sentence."""
    with pytest.raises(CorpusError) as caught:
        check_corpus(model, card, CorpusConfig(source=str(path), format="jsonl", **fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_become_tokens_is_told_at_plan_time(model, chat_model, card, chats, tmp_path):
    assert "has no chat template" in check(card, model, chats, holds="messages")
    assert "nobody of the roles human says anything" in check(card, chat_model, chats, holds="messages", roles=("human",))
    assert "column 'messages' holds list, not text" in check(card, chat_model, chats, column="messages")
    path = tmp_path / "ids.jsonl"
    for row, words in (([5, 10**6], "holds 1000000 at place 1"), ([-1], "holds -1 at place 0"), ([5, "a"], "holds 'a' at place 1")):
        path.write_text(json.dumps({"input_ids": [3, 4]}) + "\n" + json.dumps({"input_ids": row}) + "\n")
        assert f"{path}, line 2: column 'input_ids' {words}" in check(card, model, path, holds="tokens")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "jsonl", "roles": ["user"]}, r"roles \(\('user',\)\) has no effect: .* the corpus holds text; leave roles out, or set"),
        ({"format": "jsonl", "holds": "messages", "roles": []}, "at least one"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        CorpusConfig.model_validate_json(json.dumps({"source": "x", **fields}))


@pytest.mark.parametrize("format", ["lines", "files", "jsonl", "parquet", "hub"])
@pytest.mark.parametrize(
    ("field", "value", "readers"),
    [("column", "body", "jsonl parquet hub"), ("holds", "tokens", "jsonl parquet hub"), ("subset", "de", "hub"), ("split", "test", "hub")],
)
def test_a_field_that_the_format_does_not_read_is_refused(format, field, value, readers):
    given = json.dumps({"source": "x", "format": format, field: value})
    if format in readers.split():
        assert getattr(CorpusConfig.model_validate_json(given), field) == value
    else:
        said = rf"{field} \('{value}'\) has no effect: .* the format {format}; leave {field} out, or change format"
        with pytest.raises(ValueError, match=said):
            CorpusConfig.model_validate_json(given)
        whole = CorpusConfig.model_validate_json(json.dumps({"source": "x", "format": format}))
        assert CorpusConfig.model_validate_json(whole.model_dump_json()) == whole, "a stored file has every field"


def test_a_share_of_spare_rows_needs_the_filter_that_takes_them():
    fields = {"layers": [1], "sites": ["resid_post"], "tokens": 2**20, "outlier_spare": 0.05}
    with pytest.raises(ValueError, match=r"outlier_spare \(0.05\) has no effect: without outlier_norm"):
        HarvestConfig.model_validate_json(json.dumps(fields))
    assert HarvestConfig.model_validate_json(json.dumps(fields | {"outlier_norm": 20.0})).outlier_spare == 0.05


def test_dropping_every_position_is_refused():
    fields = {"layers": [1], "sites": ["resid_post"], "tokens": 2**20, "context_length": 8, "drop_first_positions": 8}
    with pytest.raises(ValueError, match="leaves no token of a sequence"):
        HarvestConfig.model_validate_json(json.dumps(fields))
