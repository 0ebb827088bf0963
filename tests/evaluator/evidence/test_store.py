"""An SAE's evidence: what is written is read back, in ranges, and damage is noticed."""

import pyarrow as pa
import pytest
from support import written_evidence

from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.evaluator.evidence.schema import EXAMPLES, LATENTS
from scopemill.evaluator.evidence.store import token_table
from scopemill.proto.errors import CorruptObject, InputError, MissingObject
from scopemill.proto.evidence import BLOCK_LATENTS, TOP
from scopemill.proto.vocabulary import Vocabulary

SAE = "saes/tiny/blocks.2.hook_resid_post/width_40/jumprelu/0.001-abc"


@pytest.fixture
def evidence(bucket) -> Evidence:
    return written_evidence.write(bucket, SAE)


def test_a_latents_contexts_take_one_range_read(evidence, monkeypatch):
    asked = []
    read = type(evidence.bucket).read_range
    monkeypatch.setattr(type(evidence.bucket), "read_range", lambda *given: asked.append(given[1:]) or read(*given))
    examples = evidence.examples(17)
    assert len(asked) == 1 and asked[0][0] == evidence.layout.examples
    assert [e.interval for e in examples] == sorted((e.interval for e in examples), key=lambda i: (i != TOP, -i))
    top = [e.value for e in examples if e.interval == TOP]
    assert top == sorted(top, reverse=True) and all(e.activations[e.peak] == e.value for e in examples)


def test_the_file_of_examples_is_plain_arrow(evidence):
    with pa.ipc.open_file(pa.BufferReader(evidence.bucket.read(evidence.layout.examples))) as file:
        table = file.read_all()
        sizes = [len(batch) for batch in map(file.get_batch, range(file.num_record_batches)) if len(batch)]
    assert table.schema.equals(EXAMPLES) and table.column("latent").to_pylist() == list(range(40))
    assert sizes == [BLOCK_LATENTS, BLOCK_LATENTS, 8]
    assert dict(evidence.all_examples()).keys() == set(range(40))
    assert evidence.examples(4) == [], "a latent that never fires has no contexts"


def test_latents_are_a_table_and_a_row(evidence):
    assert evidence.latents().schema.equals(LATENTS)
    assert evidence.latent(7)["latent"] == 7 and evidence.latent(4)["top_token"] is None
    with pytest.raises(InputError, match="latent 40 does not exist: .* latents 0 to 39"):
        evidence.latent(40)


@pytest.mark.parametrize("name", ["latents.parquet", "examples.arrow", "tokens.parquet"])
def test_damage_is_a_sentence(evidence, name):
    path = f"{evidence.layout.root}/{name}"
    data = bytearray(evidence.bucket.read(path))
    assert evidence.is_whole(read=True)
    data[len(data) // 2] ^= 1
    evidence.bucket.write(path, data)
    assert evidence.is_whole() and not evidence.is_whole(read=True)
    with pytest.raises(CorruptObject, match="make it again with scopemill evidence"):
        evidence.latents(), list(evidence.all_examples()), evidence.vocabulary
    evidence.bucket.write(path, data[:-1])
    assert not evidence.is_whole()


def test_an_sae_without_evidence_is_a_sentence(bucket, evidence):
    assert evidence_of(bucket, SAE).record == evidence.record
    with pytest.raises(MissingObject, match="has no evidence yet"):
        evidence_of(bucket, "saes/other")


def test_tokens_of_parts_of_characters_read_as_text(evidence):
    words = evidence.vocabulary
    assert token_table(words).equals(token_table(written_evidence.vocabulary()))
    assert words.pieces([8, 12, 13, 4]) == [" caf", "", "é", " the"]
    assert words.text(12) == "<0xC3>" and words.text(99) == "\N{REPLACEMENT CHARACTER}"
    assert Vocabulary([b"\xc3"]).pieces([0]) == ["\N{REPLACEMENT CHARACTER}"]
