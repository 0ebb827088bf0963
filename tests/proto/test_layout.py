"""Where things lie in the bucket: documented for people, so it must not move."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopemill.proto.errors import InputError
from scopemill.proto.layout import DatasetLayout, SaeLayout, SweepLayout, checked_name, width_label


@pytest.mark.parametrize(
    ("power", "label"), [(10, "1k"), (14, "16k"), (15, "32k"), (16, "65k"), (17, "131k"), (18, "262k"), (19, "524k"), (20, "1m")]
)
def test_widths_are_labelled_as_gemma_scope_does(power, label):
    assert width_label(2**power) == label


@pytest.mark.parametrize("width", [1, 192, 512, 1000, 1025, 3000, 16_000, 24_576, 2**20 + 1])
def test_a_width_that_is_no_power_of_two_keeps_its_digits(width):
    assert width_label(width) == str(width)


@given(st.lists(st.one_of(st.integers(1, 2**22), st.integers(0, 24).map(lambda k: 2**k)), unique=True, max_size=50))
def test_no_two_widths_share_a_label(widths):
    assert len({width_label(width) for width in widths}) == len(widths)


def test_a_dataset_lies_where_the_documents_say():
    layout = DatasetLayout("demo")
    assert layout.manifest == "activations/demo/dataset.json"
    assert layout.packing == "activations/demo/packing.json"
    assert layout.packed(17) == "activations/demo/packed/00017.safetensors"
    assert layout.reserved == "activations/demo/packed/reserved.safetensors"
    assert layout.shard(17) == "activations/demo/shards/00017.zarr"
    assert layout.array(17, "blocks.3.hook_resid_post") == "activations/demo/shards/00017.zarr/blocks.3.hook_resid_post"
    assert layout.commits == "activations/demo/commits"
    assert layout.commit(17) == "activations/demo/commits/00017.json"


def test_an_sae_lies_where_the_documents_say():
    layout = SaeLayout.of("gemma-2-2b", "blocks.12.hook_resid_post", 2**14, "jumprelu", "0.001-abc")
    assert layout.root == "saes/gemma-2-2b/blocks.12.hook_resid_post/width_16k/jumprelu/0.001-abc"
    assert layout.config == f"{layout.root}/cfg.json"
    assert layout.weights == f"{layout.root}/sae_weights.safetensors"
    assert layout.metrics == f"{layout.root}/metrics.json"
    assert layout.provenance == f"{layout.root}/provenance.json"
    assert layout.checkpoint(250).root == f"{layout.root}/checkpoints/00000250"
    assert layout.checkpoint(250).record == f"{layout.root}/checkpoints/00000250/checkpoint.json"


def test_a_sweep_lies_where_the_documents_say():
    layout = SweepLayout("demo")
    assert (layout.config, layout.results, layout.report) == (
        "sweeps/demo/sweep.yaml",
        "sweeps/demo/results.parquet",
        "sweeps/demo/report.html",
    )


def test_checkpoints_and_shards_sort_by_number():
    sae, dataset = SaeLayout("saes/x"), DatasetLayout("x")
    steps, shards = [0, 9, 10, 99, 100, 12_345_678], [0, 9, 10, 99, 100, 99_999]
    assert sorted(sae.checkpoint(step).root for step in reversed(steps)) == [sae.checkpoint(step).root for step in steps]
    assert sorted(dataset.commit(shard) for shard in reversed(shards)) == [dataset.commit(shard) for shard in shards]


@pytest.mark.parametrize("name", ["demo", "Gemma-2_2b.v1", "7", "a..b"])
def test_a_plain_name_is_usable(name):
    assert checked_name("dataset", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../demo",
        "a/b",
        "/a",
        "a\\b",
        ".hidden",
        "-option",
        "_x",
        "a b",
        "demo\n",
        "caf\u00e9",
        "a\0b",
        "*",
        "s3://x",
    ],  # fmt: skip
)
def test_a_name_that_is_no_single_folder_is_refused_with_a_sentence_that_shows_it(name):
    for make in (DatasetLayout, SweepLayout):
        with pytest.raises(InputError) as caught:
            make(name)
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=8))
def test_whatever_is_accepted_as_a_name_is_one_folder(name):
    try:
        checked_name("sweep", name)
    except InputError:
        return
    assert set(name) <= set(string.ascii_letters + string.digits + "._-")
    assert name[0] in string.ascii_letters + string.digits
