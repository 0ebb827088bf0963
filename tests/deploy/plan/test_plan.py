"""What is refused before Ray is started, and what is told of the rest."""

from pathlib import Path

import pytest
import torch
from support import tiny_sweep

from scopemill.deploy.cost.summary import facts
from scopemill.deploy.plan import planner
from scopemill.deploy.plan.checks import check_window
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.errors import CorpusError, InputError, ModelError, StorageError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.config.recipe import sae_config
from scopemill.trainer.config.templates import load_template
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import save_sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return tiny_sweep.write_text(tmp_path_factory.mktemp("text"), documents_wanted=3)


def planned(tmp_path: Path, text: Path, **sections) -> SweepPlan:
    return plan_sweep(parse_sweep(tiny_sweep.sweep(str(tmp_path / "bucket"), text, **sections), "sweep.yaml"))


@pytest.mark.parametrize(
    "error, sections, sentence",
    [
        (ModelError, {"harvest": {"layers": [1, 9]}}, r"harvest.layers: gemma-2-stdlib has no layer 9: its layers are 0 to 5"),
        (ModelError, {"harvest": {"context_length": 4096}}, r"harvest.context_length: gemma-2-stdlib takes at most 256 tokens, not 4096"),
        (CorpusError, {"corpus": {"column": "body"}}, r"line 1 has no column 'body'; it has 'text'"),
        (CorpusError, {"corpus": {"source": "/nowhere/text.jsonl"}}, r"corpus '/nowhere/text.jsonl' is not there"),
        (CorpusError, {"evaluation": {"corpus": {"source": "/nowhere.txt", "format": "lines"}}}, r"corpus '/nowhere.txt' is not there"),
        (InputError, {"harvest": {"tokens": 1_000_003, "rows_per_shard": 1_000_003}}, r"1000003 rows can only be cut into chunks"),
        (
            InputError,
            {"train": {"batch_size": 4096, "tokens": 8192}, "server": {"window_mib": 2}},
            r"server.window_mib leaves 2 MiB to stream blocks.1.hook_resid_post.4096, less than two of its batches of 1.5 MiB: raise",
        ),
        (InputError, {"train": {"batch_size": 5000, "tokens": 10_000}}, r"a batch of 5000 rows is more than .* \(2 shards of 2048 rows\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(tmp_path, text, error, sections, sentence):
    with pytest.raises(error, match=sentence):
        planned(tmp_path, text, **sections)


def test_the_servers_window_is_divided_among_the_streams_that_there_is_room_for(tmp_path, text):
    plan = planned(tmp_path, text, train={"batch_size": 2048, "tokens": 4096}, server={"window_mib": 2})
    state = plan.read_state()
    check_window(plan, state, room=2)  # both SAEs of a stream at once, of which two batches are 1.5 MiB
    with pytest.raises(InputError, match=r"server.window_mib leaves 1 MiB to stream .*, less than two of its batches of 0.75 MiB"):
        check_window(plan, state, room=4)


def test_a_model_that_is_not_there_is_refused(tmp_path, text):
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text) | {"model": str(tmp_path / "no-model")}
    with pytest.raises(ModelError, match="no-model' cannot be loaded"):
        plan_sweep(parse_sweep(data, "sweep.yaml"))


def test_a_site_that_the_model_lacks_is_refused(tmp_path, text):
    """GPT-NeoX runs attention and MLP in parallel, so there is nothing between them."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    from scopemill.deploy.demo.run import MODEL

    folder = tmp_path / "neox"
    config = GPTNeoXConfig(vocab_size=2048, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest={"sites": ["resid_mid"], "layers": [1]}) | {"model": str(folder)}
    with pytest.raises(ModelError, match="harvest.sites: neox has no site 'resid_mid': it has resid_pre, resid_post"):
        plan_sweep(parse_sweep(data, "sweep.yaml"))
    everything = parse_sweep({**data, "harvest": data["harvest"] | {"sites": "all", "layers": "all"}}, "sweep.yaml")
    assert len(plan_sweep(everything).hooks) == 2 * 6


def test_a_priority_of_no_sae_is_refused_and_others_go_to_those_that_match(tmp_path, text):
    with pytest.raises(InputError, match=r"train.priority: no SAE of the sweep matches '\*mlp\*'; one of them is '1.resid_post/256"):
        planned(tmp_path, text, train={"priority": {"*mlp*": 1}})
    saes = planned(tmp_path, text, train={"priority": {"3.*": 2, "*": 1}}).saes
    assert [sae.priority for sae in saes] == [1, 1, 2, 2]


def test_a_bucket_that_cannot_be_written_is_refused(tmp_path, text):
    (tmp_path / "file").write_text("")
    data = tiny_sweep.sweep(str(tmp_path / "file" / "bucket"), text)
    with pytest.raises(StorageError, match=r"bucket .*/file/bucket cannot be written"):
        plan_sweep(parse_sweep(data, "sweep.yaml"))


def test_the_facts_count_tokens_bytes_and_saes(tmp_path, text):
    plan = planned(tmp_path, text)
    told = facts(plan, plan.read_state())
    assert told["harvest"].startswith("6,144 tokens in 3 shards of 2,048 rows; 0 are committed")
    assert told["train"] == "4 SAEs (2 on each stream), 4 of them still to do"
    # two hooks of 192 bfloat16 values, and 16 bytes that say which token it is
    assert told["on disk"] == f"{6144 * (2 * 192 * 2 + 16) / 2**20:.1f} MiB of activations (784 bytes a token)"
    assert told["each SAE"] == "24 steps of 256 rows, 1.00 epochs"
    assert told["data path"] == "4.5 MiB read from the bucket, 9.0 MiB served to trainers"


def test_an_sae_keeps_its_folder_unless_something_that_decides_its_weights_changes(tmp_path, text):
    def folders(**sections) -> set[str]:
        return {sae.layout.root for sae in planned(tmp_path, text, **sections).saes}

    same = folders()
    assert len(same) == 4
    assert folders(train={"cpus": 1, "at_once": 3}) == same
    assert folders(server={"window_mib": 64}) == same
    assert not folders(train={"learning_rate": 1e-4}) & same
    assert not folders(server={"seed": 1}) & same
    assert not folders(harvest={"seed": 1}) & same
    assert same < folders(train={"sparsities": [1e-3, 1e-2, 1e-1]})


def test_an_sae_of_an_earlier_version_is_found_and_the_pace_of_saving_changes_no_folder(tmp_path, text, monkeypatch):
    candidates: list[list[str]] = []

    def roots(**train) -> list[str]:
        return [sae.layout.root for sae in planned(tmp_path, text, train=train).saes]

    def noted(bucket: Bucket, all_of):
        candidates.append([one.layout.root for one in all_of[0]])
        return at_home(bucket, all_of)

    at_home = planner._at_home
    monkeypatch.setattr(planner, "_at_home", noted)
    new = roots()  # saves every 16 steps and logs every 8, which is not the template's
    assert roots(checkpoint_every=5, log_every=3) == new == roots(checkpoint_every=500, log_every=20) and len(set(new)) == 4
    own, by_own_values, *_ = candidates[0]
    assert own in new
    bucket = Bucket(str(tmp_path / "bucket"))
    bucket.write(f"{by_own_values}/cfg.json", b"{}")
    assert roots() == [by_own_values if root == own else root for root in new], "where the version that named it by more has left it"
    assert roots(checkpoint_every=5) == new, "by other values it was another SAE"
    bucket.write(f"{own}/cfg.json", b"{}")
    assert roots() == new, "its own folder comes first"


def test_evaluation_can_change_without_touching_harvest_and_training(tmp_path, text):
    def plan(**evaluation) -> SweepPlan:
        return planned(tmp_path, text, evaluation=evaluation)

    first = plan()
    task = first.passes[0].harvest
    first.bucket.create(task.text_layout.packing, checksummed_record({"shards": 3, "identity": task.text_identity}))
    corpus = {"source": str(text), "format": "jsonl"}
    for changed in (plan(sequences=3), plan(corpus=corpus), plan(corpus=corpus, sequences=100), plan(splice_special=True)):
        assert [sae.layout.root for sae in changed.saes] == [sae.layout.root for sae in first.saes]
        assert changed.passes[0].harvest.identity == task.identity
        assert changed.evaluation_settings != first.evaluation_settings, "so every checkpoint is measured anew"
    with pytest.raises(InputError, match="packed with 8 sequences reserved for evaluation, and 9 are asked for"):
        plan(sequences=9)
    without = checksummed_record({"shards": 3, "identity": task.text_identity | {"reserved_sequences": 0}})
    first.bucket.write(task.text_layout.packing, without)
    with pytest.raises(InputError, match="packed with 0 sequences reserved"):
        plan()


def test_every_file_of_a_corpus_is_looked_at_and_what_is_left_out_is_told(tmp_path, text):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(text.read_bytes())
    for name, data in ((".DS_Store", b"x"), ("notes.md", b"no JSON"), ("b.jsonl", b"\x89PNG\0\0")):
        (folder / name).write_bytes(data)
    told = facts(plan := planned(tmp_path, folder), plan.read_state())["corpus"]
    for words in ("1 files", "1 hidden files", "1 files that do not end in .jsonl or .json or .ndjson", "1 files that are not text"):
        assert words in told
    (folder / "z.jsonl").write_text("a line that is no JSON")
    with pytest.raises(CorpusError, match=f"{folder}/z.jsonl, line 1: not JSON"):
        planned(tmp_path, folder)
    with pytest.raises(CorpusError, match=f"{folder}/notes.md, line 1: not JSON"):
        planned(tmp_path, folder / "*")


def test_a_start_is_read_before_the_harvest(tmp_path, text):
    start = tmp_path / "start"
    with pytest.raises(InputError, match=f"train.initial_sae: {start} is not a finished SAE"):
        planned(tmp_path, text, train={"initial_sae": str(start)})
    config = sae_config({"architecture": "jumprelu", "width": 256, "sparsity": 1e-3} | load_template("quick").fields)
    for d, place in ((192, start), (96, tmp_path / "narrow")):
        save_sae(fold(initial_sae(config, Shape.square(d), torch.zeros(d)).requires_grad_(False), [3.0], [3.0]), place)
    plan = planned(tmp_path, text, train={"initial_sae": str(start)})
    assert "Sae(jumprelu, 192 -> 256" in facts(plan, plan.read_state())["starts from"]
    with pytest.raises(InputError, match="train.initial_sae: .* has 256 latents, and train.widths asks for 512"):
        planned(tmp_path, text, train={"initial_sae": str(start), "widths": [256, 512]})
    with pytest.raises(InputError, match="train.initial_sae: .* is not a standard of this shape, but a jumprelu"):
        planned(tmp_path, text, train={"initial_sae": str(start), "architecture": "standard"})
    with pytest.raises(InputError, match="reads rows of width 96 .* hooks have 192"):
        planned(tmp_path, text, train={"initial_sae": str(tmp_path / "narrow")})


def test_a_start_beside_the_sweep_file_is_found_from_any_folder(tmp_path, text, monkeypatch):
    test_a_start_is_read_before_the_harvest(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    relative = planned(tmp_path, text, train={"initial_sae": "start"})
    assert {sae.config.initial_sae for sae in relative.saes} == {str(tmp_path / "start")}
