"""Checkpoints: there or not there, never half; and what does not fit is said in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.sae_reference import CASES, Case, quick

from scopemill.proto.errors import Conflict, CorruptObject, MissingObject, SaeFormatError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors, read_record
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Port, Shape, Wiring
from scopemill.trainer.sae.registry import ARCHITECTURES, initial_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History, Row
from scopemill.trainer.training.loop import Loop

D, F = 6, 10
LAYOUT = SaeLayout("saes/m/blocks.0.hook_resid_post/width_10/jumprelu/0")


def wired(shape: Shape) -> Wiring:
    """Hooks of these widths, each with a scale of its own."""
    layers = [Port(f"blocks.{i}.mlp.hook_in", d, 12.5 + i) for i, d in enumerate(shape.inputs)]
    targets = tuple(Port(f"blocks.{i}.hook_mlp_out", d, 0.5 + i) for i, d in enumerate(shape.outputs))
    return Wiring(tuple(layers), () if shape.autoencoder else targets)


WIRING = wired(Shape.square(D))


def make_config(**changes) -> SaeConfig:
    return quick(**dict(width=F, sparsity=0.5) | changes)


def make_loop(config: SaeConfig, seed: int, shape: Shape = WIRING.shape, step: int = 500) -> Loop:
    """In a state of its own in every part."""
    generator = torch.Generator().manual_seed(seed)
    loop = Loop(initial_sae(config, shape, torch.zeros(shape.d_out)), config, History())
    with torch.no_grad():
        for p in [*loop.sae.state_dict().values(), *loop.state().values()]:
            whole = p.dtype in (torch.int64, torch.bool)
            p.copy_(torch.randint(0, 2**40, p.shape, generator=generator) if whole else torch.rand(p.shape, generator=generator))
    loop.sparse, loop.skipped, loop.step_number = bool(seed % 2), seed % 3, step
    return loop


def save(bucket: Bucket, step: int, config: SaeConfig, seed: int = 0) -> None:
    checkpoint.save(bucket, LAYOUT, WIRING, make_loop(config, seed, step=step))


class Interrupted(Exception):
    pass


class FailingBucket(Bucket):
    """Dies before the n-th object that it is asked to write."""

    def __init__(self, url: str, allowed: int):
        super().__init__(url)
        self.written, self._allowed = [], allowed

    def _note(self, path: str) -> None:
        if len(self.written) == self._allowed:
            raise Interrupted
        self.written.append(path)

    def write(self, path, *parts):
        self._note(path)
        super().write(path, *parts)

    def create(self, path, data):
        self._note(path)
        return super().create(path, data)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_everything_comes_back_bit_for_bit(bucket, case: Case):
    config, wiring = case.config, wired(case.shape)
    loop = make_loop(config, 5, case.shape)
    checkpoint.save(bucket, LAYOUT, wiring, loop)
    loaded, record = checkpoint.load_sae(bucket, LAYOUT, 500)
    assert (record.step, record.skipped, record.tokens) == (500, 2, 498 * 1024)
    assert Wiring.from_json(record.wiring) == wiring and record.sae_config == config
    sae = loop.sae
    assert type(loaded) is ARCHITECTURES[config.architecture] and loaded.activation.name == config.latents
    assert (loaded.shape, loaded.width, loaded.centred, loaded.layer_norm) == (sae.shape, sae.width, sae.centred, sae.layer_norm)
    again = checkpoint.load_loop(bucket, LAYOUT, 500, config)
    assert (again.step_number, again.skipped, again.optimizer.updates) == (500, 2, 498) and again.sparse
    for found, expected in ((again.sae.state_dict(), sae.state_dict()), (again.state(), loop.state())):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name


def test_batchtopks_threshold_is_kept_though_no_gradient_trains_it():
    assert {"activation.threshold", "activation.batches"} <= make_loop(CASES["batchtopk"].config, 0).sae.state_dict().keys()


def test_the_record_is_written_last(bucket):
    recording = FailingBucket(bucket.url, allowed=99)
    save(recording, 500, make_config())
    place = LAYOUT.checkpoint(500)
    assert sorted(recording.written) == sorted([place.weights, place.optimizer, place.record])
    assert recording.written[-1] == place.record


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_save_that_dies_on_the_way_leaves_the_checkpoint_before_it_whole(bucket, allowed):
    config = make_config()
    save(bucket, 500, config, seed=1)
    with pytest.raises(Interrupted):
        save(FailingBucket(bucket.url, allowed), 1000, config, seed=2)
    assert checkpoint.steps_of(bucket, LAYOUT) == [500]
    sae = checkpoint.load_loop(bucket, LAYOUT, 500, config).sae
    assert torch.equal(sae.W_dec, make_loop(config, seed=1).sae.W_dec)
    save(bucket, 1000, config, seed=3)
    assert checkpoint.steps_of(bucket, LAYOUT) == [500, 1000]
    sae = checkpoint.load_loop(bucket, LAYOUT, 1000, config).sae
    assert torch.equal(sae.W_dec, make_loop(config, seed=3).sae.W_dec)


def test_a_folder_without_its_record_is_no_checkpoint(bucket):
    assert checkpoint.steps_of(bucket, LAYOUT) == []
    save(bucket, 500, make_config())
    bucket.remove(LAYOUT.checkpoint(500).record)
    assert bucket.exists(LAYOUT.checkpoint(500).weights)
    assert checkpoint.steps_of(bucket, LAYOUT) == []


def test_what_else_lies_among_the_checkpoints_is_passed_over(bucket):
    save(bucket, 500, make_config())
    bucket.write(f"{LAYOUT.checkpoints}/.DS_Store", b"left by a file browser")
    bucket.write(f"{LAYOUT.checkpoints}/notes/checkpoint.json", b"{}")
    assert checkpoint.steps_of(bucket, LAYOUT) == [500]


def test_steps_are_in_the_order_of_their_numbers(bucket):
    for step in (99_999_999, 20, 300):
        bucket.write(LAYOUT.checkpoint(step).record, b"{}")
    bucket.write(LAYOUT.checkpoint(10**8).record, b"{}")
    assert checkpoint.steps_of(bucket, LAYOUT) == [20, 300, 99_999_999, 10**8]


def test_the_last_two_keep_the_optimisers_state_and_all_keep_their_weights(bucket):
    for step in (10, 20, 30):
        save(bucket, step, make_config())
    places = [LAYOUT.checkpoint(step) for step in (10, 20, 30)]
    assert [bucket.exists(p.optimizer) for p in places] == [False, True, True]
    assert all(bucket.exists(p.weights) and bucket.exists(p.record) for p in places)
    assert checkpoint.load_sae(bucket, LAYOUT, 10)[1].step == 10
    with pytest.raises(MissingObject):
        checkpoint.load_loop(bucket, LAYOUT, 10, make_config())


DAMAGES = {
    "weights": lambda bucket, place: bucket.write(place.weights, bucket.read(place.weights)[:-1]),
    "optimizer": lambda bucket, place: bucket.write(place.optimizer, b""),
    "a missing optimizer": lambda bucket, place: bucket.remove(place.optimizer),
    "record": lambda bucket, place: bucket.write(place.record, b""),
    "weights of another checkpoint": lambda bucket, place: bucket.write(place.weights, bucket.read(LAYOUT.checkpoint(10).weights)),
    "a state of another checkpoint": lambda bucket, place: bucket.write(place.optimizer, bucket.read(LAYOUT.checkpoint(20).optimizer)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_and_made_again(bucket, damage):
    for seed, step in enumerate((10, 20, 30)):
        save(bucket, step, make_config(), seed)
    place, warnings = LAYOUT.checkpoint(30), []
    wanted = {path: bucket.read(path) for path in (place.weights, place.optimizer, place.record)}
    damage(bucket, place)
    assert checkpoint.newest_whole(bucket, LAYOUT, warnings.append) == 20 == checkpoint.newest(bucket, LAYOUT)
    assert len(warnings) == 1 and f"{place.root} is damaged and passed over" in warnings[0]
    assert checkpoint.load_loop(bucket, LAYOUT, 20, make_config()).step_number == 20
    save(bucket, 30, make_config(), seed=2)
    assert {path: bucket.read(path) for path in wanted} == wanted
    assert checkpoint.newest_whole(bucket, LAYOUT, warnings.append) == 30 and len(warnings) == 1


def test_if_both_are_damaged_training_starts_anew_and_older_weights_stay(bucket):
    for step in (10, 20, 30):
        save(bucket, step, make_config())
    for step in (20, 30):
        bucket.write(LAYOUT.checkpoint(step).weights, b"")
    assert checkpoint.newest_whole(bucket, LAYOUT) == 0
    assert checkpoint.steps_of(bucket, LAYOUT) == [10]
    assert checkpoint.load_sae(bucket, LAYOUT, 10)[1].step == 10


def test_a_checkpoint_of_an_earlier_version_is_resumed_with_what_it_has(bucket):
    save(bucket, 500, make_config())
    unbind(bucket)
    assert checkpoint.newest_whole(bucket, LAYOUT) == 500
    data = checkpoint.Data(WIRING, "a text")
    assert checkpoint.load_loop(bucket, LAYOUT, 500, make_config(), data).step_number == 500


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (checkpoint.Data(Wiring((replace(WIRING.inputs[0], scale=3.0),)), "a text"), r"the scale of inputs 1 was 12\.5, and now is 3\.0"),
        (checkpoint.Data(Wiring((replace(WIRING.inputs[0], hook="blocks.9.mlp.hook_in"),)), "a text"), "the hook of inputs 1"),
        (checkpoint.Data(Wiring(WIRING.inputs * 2), "a text"), "the hook of inputs 2 was None"),
        (checkpoint.Data(WIRING, "another text"), "the checksum of the packed text was a text, and now is another text"),
    ],
)
def test_an_sae_does_not_train_on_with_other_activations(bucket, data, named):
    checkpoint.save(bucket, LAYOUT, WIRING, make_loop(make_config(), 0), "a text")
    for same in (checkpoint.Data(WIRING, "a text"), checkpoint.Data(WIRING, None)):
        assert checkpoint.load_loop(bucket, LAYOUT, 500, make_config(), same).step_number == 500
    with pytest.raises(Conflict, match=named) as caught:
        checkpoint.load_loop(bucket, LAYOUT, 500, make_config(), data)
    assert LAYOUT.root in str(caught.value)


def test_a_damaged_history_stops_nothing(bucket):
    row = Row(500, 1, 0.5, 0.4, 50.0, 50.0, 0.4, 0, 1e-3, 1e-3, 1.0, 2.0, 0.0)
    save(bucket, 500, make_config())
    History([row]).save(bucket, LAYOUT.history)
    whole = bucket.read(LAYOUT.history)
    assert checkpoint.load_loop(bucket, LAYOUT, 500, make_config()).history.rows == [row]
    for i in range(0, len(whole), 41):  # a flipped bit is found, or in a place that no row depends on
        bucket.write(LAYOUT.history, whole[:i] + bytes([whole[i] ^ 8]) + whole[i + 1 :])
        assert History.load(bucket, LAYOUT.history, 500).rows in ([], [row])
    for damaged in (b"", whole[: len(whole) // 2]):
        bucket.write(LAYOUT.history, damaged)
        warnings = []
        assert History.load(bucket, LAYOUT.history, 500, warnings.append).rows == []
        assert len(warnings) == 1 and LAYOUT.history in warnings[0]
        assert checkpoint.load_loop(bucket, LAYOUT, 500, make_config()).step_number == 500


@pytest.mark.parametrize(
    ("key", "value"), [("sparsity", 0.25), ("learning_rate", 0.5), ("seed", 7), ("tokens", 2_000_000), ("initial_decoder_bias", "zero")]
)
def test_another_configuration_is_a_conflict_that_names_the_key_and_both_values(bucket, key, value):
    save(bucket, 500, make_config())
    with pytest.raises(Conflict) as caught:
        checkpoint.load_loop(bucket, LAYOUT, 500, make_config(**{key: value}))
    assert f"{key} = {getattr(make_config(), key)!r}" in str(caught.value) and repr(value) in str(caught.value)
    assert LAYOUT.root in str(caught.value)


def test_a_key_that_only_the_checkpoint_knows_is_a_conflict_too(bucket):
    config = make_config()
    save(bucket, 500, config)
    path = LAYOUT.checkpoint(500).record
    record = read_record(bucket, path)
    record["config"]["auxiliary_loss"] = 3
    bucket.write(path, checksummed_record(record))
    with pytest.raises(Conflict, match="auxiliary_loss = 3"):
        checkpoint.load_loop(bucket, LAYOUT, 500, config)


def unbind(bucket: Bucket) -> None:
    """Make the record one of an earlier version, which names no checksums."""
    path = LAYOUT.checkpoint(500).record
    fields = read_record(bucket, path)
    bucket.write(path, checksummed_record({key: value for key, value in fields.items() if key not in ("parts", "text")}))


def tensors_of(bucket: Bucket, path: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(bucket.read(path))


def other_width(weights: dict) -> None:
    weights["W_dec"] = weights["W_dec"][:-1].contiguous()


def another_tensor(weights: dict) -> None:
    weights["W_skip"] = torch.zeros(2)


def no_decoder(weights: dict) -> None:
    del weights["W_dec"]


def no_threshold(weights: dict) -> None:
    del weights["activation.threshold"]


def flat_decoder(weights: dict) -> None:
    weights["W_dec"] = weights["W_dec"].flatten()


@pytest.mark.parametrize("change", [other_width, another_tensor, no_decoder, no_threshold, flat_decoder])
def test_weights_that_do_not_fit_are_a_format_error_that_names_the_file(bucket, change):
    save(bucket, 500, make_config())
    path = LAYOUT.checkpoint(500).weights
    weights = tensors_of(bucket, path)
    change(weights)
    bucket.write(path, *checksummed_tensors(safetensors.torch.save(weights)))
    with pytest.raises(CorruptObject, match="it is another file"):
        checkpoint.load_sae(bucket, LAYOUT, 500)
    unbind(bucket)
    with pytest.raises(SaeFormatError) as caught:
        checkpoint.load_sae(bucket, LAYOUT, 500)
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights", "optimizer"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 64,
        lambda data: b"not a tensor",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # the last bit of the last tensor
        lambda data: data.replace(b'"F32"', b'"I32"', 1) if b'"F32"' in data else b"",
    ],
)
def test_a_file_that_is_damaged_is_corrupt_and_named(bucket, name, damage):
    save(bucket, 500, make_config())
    path = getattr(LAYOUT.checkpoint(500), name)
    bucket.write(path, damage(bucket.read(path)))
    with pytest.raises(CorruptObject) as caught:
        checkpoint.load_loop(bucket, LAYOUT, 500, make_config())
    assert path in str(caught.value)


@pytest.mark.parametrize("missing", ["tokens_since_fired", "second_moment.b_enc", "second_moment.activation.threshold", "updated.W_dec"])
def test_an_optimisers_state_that_is_not_whole_is_a_format_error(bucket, missing):
    save(bucket, 500, make_config())
    path = LAYOUT.checkpoint(500).optimizer
    state = tensors_of(bucket, path)
    del state[missing]
    bucket.write(path, *checksummed_tensors(safetensors.torch.save(state)))
    with pytest.raises(CorruptObject, match="it is another file"):
        checkpoint.load_loop(bucket, LAYOUT, 500, make_config())
    unbind(bucket)
    with pytest.raises(SaeFormatError, match="optimizer.safetensors"):
        checkpoint.load_loop(bucket, LAYOUT, 500, make_config())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": 1}', '{"step": 500, "crc32c": "00000000"}', '{"crc32c": 3}', "3"])
def test_a_record_that_carries_no_such_checksum_is_corrupt_and_named(bucket, text):
    save(bucket, 500, make_config())
    path = LAYOUT.checkpoint(500).record
    bucket.write(path, text.encode())
    with pytest.raises(CorruptObject) as caught:
        checkpoint.load_sae(bucket, LAYOUT, 500)
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"step": 1},
        {"step": 500, "skipped": 0, "tokens": 1, "wiring": {"inputs": [], "targets": []}, "config": {"architecture": "topk"}},
        {"step": 500, "skipped": 0, "tokens": 1, "wiring": {"inputs": 3}, "config": {}},
        {"step": 500, "skipped": 0, "tokens": 1, "wiring": [], "config": []},
    ],
)
def test_a_record_of_another_kind_is_a_format_error_that_names_it(bucket, fields):
    save(bucket, 500, make_config())
    path = LAYOUT.checkpoint(500).record
    bucket.write(path, checksummed_record(fields))
    with pytest.raises(SaeFormatError) as caught:
        checkpoint.load_sae(bucket, LAYOUT, 500)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_is_plain_json_and_safetensors(bucket):
    save(bucket, 500, make_config())
    folder = Path(bucket.url) / LAYOUT.checkpoint(500).root
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.json", "optimizer.safetensors", "weights.safetensors"]
    assert json.loads((folder / "checkpoint.json").read_text())["config"]["width"] == F
    assert set(safetensors.torch.load_file(folder / "weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec", "activation.threshold"}
