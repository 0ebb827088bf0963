"""Several recipes in one sweep file, and the passes that its hooks are harvested in."""

import json
from pathlib import Path

import pytest
from support import tiny_sweep

from scopemill.deploy.cost.estimate import HARDWARE, cost_of
from scopemill.deploy.cost.sizes import ModelSize
from scopemill.deploy.cost.summary import facts
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import SweepConfig, load_sweep, parse_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.errors import InputError, SweepFileError

MIB = 2**-10  # in GiB
HOOK = 6144 * (192 * 2 + 16) / 2**20  # MiB of the tiny sweep's shards, where a pass has one hook


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return tiny_sweep.write_text(tmp_path_factory.mktemp("text"), documents_wanted=3)


def parsed(tmp_path: Path, text: Path, variants: list | None = None, harvest: dict | None = None, **train) -> SweepConfig:
    given = train | ({"variants": variants} if variants else {})
    return parse_sweep(tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest=harvest or {}, train=given), "sweep.yaml")


def planned(tmp_path: Path, text: Path, *arguments, **sections) -> SweepPlan:
    return plan_sweep(parsed(tmp_path, text, *arguments, **sections))


def names(plan: SweepPlan) -> list[str]:
    return [sae.name for sae in plan.saes]


def test_each_variant_gives_its_widths_and_sparsities_at_each_of_its_hooks(tmp_path, text):
    plan = planned(
        tmp_path,
        text,
        [{"architecture": "topk", "sparsities": [4, 8], "layers": [3]}, {"widths": [64, 128], "sparsities": [0.1], "learning_rate": 1e-4}],
    )
    assert names(plan) == [
        "3.resid_post/256/topk/4", "3.resid_post/256/topk/8", "3.resid_post/64/jumprelu/0.1", "3.resid_post/128/jumprelu/0.1",
        "1.resid_post/64/jumprelu/0.1", "1.resid_post/128/jumprelu/0.1",
    ]  # fmt: skip
    assert [sae.config.learning_rate for sae in plan.saes] == [1e-2, 1e-2, *[1e-4] * 4]
    assert [sae.recipe for sae in plan.saes] == [*["train.variants[0]"] * 2, *["train.variants[1]"] * 4]
    assert len({sae.rivals for sae in plan.saes}) == 5, "rivals differ in their sparsity alone"
    assert facts(plan, plan.read_state())["train"].startswith("6 SAEs (2-4 on each stream)")


def test_a_variants_template_fills_what_neither_it_nor_the_section_gives(tmp_path, text):
    one, other = parsed(tmp_path, text, [{"template": "topk-openai", "sparsities": [4]}, {}], dead_after_tokens=1000).train.variants
    assert (one.architecture, other.architecture) == ("topk", "jumprelu")
    assert one.dead_after_tokens == other.dead_after_tokens == 1000
    assert (one.tokens, one.batch_size, one.log_every) == (other.tokens, other.batch_size, other.log_every) == (256 * 24, 256, 8)
    assert one.learning_rate != other.learning_rate == 1e-2


def test_the_section_alone_and_as_its_only_variant_train_the_same(tmp_path, text):
    alone, varied = planned(tmp_path, text), planned(tmp_path, text, [{}])
    assert [sae.layout.root for sae in alone.saes] == [sae.layout.root for sae in varied.saes] and names(alone) == names(varied)


@pytest.mark.parametrize("variants", [None, [{"template": "topk-openai", "sparsities": [4]}, {"sites": ["resid_post"]}]])
def test_what_is_sent_to_a_cluster_means_the_same(tmp_path, text, variants):
    config = parsed(tmp_path, text, variants, bandwidth=0.1)
    (tmp_path / "sent.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    sent = load_sweep(str(tmp_path / "sent.yaml"))
    assert sent == config
    assert [sae.layout.root for sae in plan_sweep(sent).saes] == [sae.layout.root for sae in plan_sweep(config).saes]


def test_a_field_of_the_section_has_to_be_read_by_one_variant(tmp_path, text):
    topk = {"architecture": "topk", "sparsities": [4]}
    topk_of, jumprelu = parsed(tmp_path, text, [topk, {}], bandwidth=0.1).train.variants
    assert jumprelu.saes()[0].bandwidth == 0.1 and "bandwidth" not in topk_of.saes()[0].model_dump()
    with pytest.raises(SweepFileError, match=r"train: bandwidth \(0.1\) has no effect: .*, and not by a topk SAE or a standard SAE;"):
        parsed(tmp_path, text, [topk, {"architecture": "standard"}], bandwidth=0.1)


def test_saes_and_transcoders_of_one_sweep_share_hooks(tmp_path, text):
    plan = planned(tmp_path, text, [{"architecture": "transcoder"}, {"sites": ["mlp_out"]}], {"sites": ["mlp_in", "mlp_out"]})
    assert sorted({sae.hooks for sae in plan.saes}, key=lambda hooks: (len(hooks), hooks)) == [
        *((hook,) for hook in plan.hooks if hook.site == "mlp_out"), *(plan.hooks[i : i + 2] for i in (0, 2)),
    ]  # fmt: skip


def test_names_stay_apart_where_recipes_differ_in_something_else(tmp_path, text):
    plan = planned(
        tmp_path, text, [{"seed": 1}, {"seed": 2}, {"architecture": "standard"}], sparsities=[0.1], priority={"*/variants[[]1]": 3}
    )
    assert names(plan)[:3] == [
        "1.resid_post/256/jumprelu/0.1/variants[0]", "1.resid_post/256/jumprelu/0.1/variants[1]", "1.resid_post/256/standard/0.1",
    ]  # fmt: skip
    assert [sae.priority for sae in plan.saes[:3]] == [0, 3, 0]


@pytest.mark.parametrize(
    "variants, sentence",
    [
        (
            [{}, {"sparsities": [0.5, 1e-3]}],
            r"train.variants\[0\] and train.variants\[1\] both describe the SAE 1.resid_post/256/jumprelu/0.001",
        ),
        ([{}, {"layers": [1, 2]}], r"train.variants\[1\].layers: 2 is not harvested: harvest.layers gives 1, 3"),
        ([{"sites": ["mlp_out"]}], r"train.variants\[0\].sites: mlp_out is not harvested: harvest.sites gives resid_post"),
        ([{"architecture": "transcoder"}], r"train.variants\[0\].input_site: a transcoder needs the site 'mlp_in'"),
        ([{"architecture": "crosscoder", "layers": [1]}], r"train.variants\[0\].architecture: a crosscoder spans layers"),
        ([{}, {"sparsities": ["x"]}], r"sweep.yaml: train.variants\[1\].sparsities\[0\]: should be a valid number, not 'x'"),
        ([{"sparsity": 1}], r"train.variants\[0\].sparsity: there is no such field"),
        ([{"at_once": 1}], r"train.variants\[0\].at_once: there is no such field"),
        ([{}, {"architecture": "topk"}], r"train.variants\[1\]: sparsity \(0.001\) is k here"),
        ([{"sparsities": []}], r"train.variants\[0\]: sparsities has to hold at least one value"),
        ([{}, {"batch_size": 128}], r"train: variants\[1\].batch_size: 128 is not the section's 256"),
        ([{"template": "fast"}], "template 'fast' is not known"),
        ([{}, {"architecture": "topk", "bandwidth": 0.1}], r"train: variants\[1\].bandwidth \(0.1\) has no effect: .* not by a topk SAE"),
        ([7], r"train.variants\[0\]: should be an object, not 7"),
    ],
)
def test_what_cannot_be_is_refused_with_the_variant_and_the_field(tmp_path, text, variants, sentence):
    with pytest.raises((InputError, SweepFileError), match=sentence):
        planned(tmp_path, text, variants)


def test_rivals_of_every_variant_have_to_train_at_once(tmp_path, text):
    with pytest.raises(SweepFileError, match="at_once is 2: raise at_once to 3"):
        parsed(tmp_path, text, [{}, {"sparsities": [0.1, 0.2, 0.3]}], at_once=2, halving={"rungs": [0.5]})


def test_hooks_that_do_not_fit_are_harvested_in_passes_and_saes_keep_their_folders(tmp_path, text):
    whole = planned(tmp_path, text)
    for room in ({"disk_gib": 1.5 * HOOK * MIB}, {"memory_gib": 2.5 * HOOK * MIB * 2048 / 6144}):
        plan = planned(tmp_path, text, None, room)
        assert [part.harvest.dataset for part in plan.passes] == ["tiny-pass-1", "tiny-pass-2"]
        assert [[hook.layer for hook in part.harvest.hooks] for part in plan.passes] == [[1], [3]]
        assert [sae.layout.root for sae in plan.saes] == [sae.layout.root for sae in whole.saes]
        assert plan.hooks == whole.hooks and {part.harvest.text for part in plan.passes} == {"tiny"}
        assert plan.sheds == ("disk_gib" in room)
        assert facts(plan, plan.read_state())["passes"].startswith("1: 1 hooks up to layer 1, 2 SAEs")
    assert [part.harvest.dataset for part in planned(tmp_path, text, None, {"disk_gib": 2 * HOOK * MIB}).passes] == ["tiny"]


def test_passes_cost_a_forward_pass_each_and_a_disk_budget_bounds_what_lies_there(tmp_path, text):
    def costs(**harvest):
        return cost_of(planned(tmp_path, text, None, harvest), ModelSize(10**6, 10**5), HARDWARE["h100"])

    once, budgeted, kept = costs(), costs(disk_gib=1.5 * HOOK * MIB), costs(memory_gib=HOOK * MIB)
    assert budgeted.stages[0].tokens == kept.stages[0].tokens == 2 * once.stages[0].tokens
    assert 1.4 < budgeted.stages[0].flops / once.stages[0].flops < 1.6, "up to layers 1 and 3, instead of to layer 3 once"
    on_disk = [cost.paths[1].on_disk / 2**20 for cost in (once, budgeted, kept)]
    assert on_disk == pytest.approx([2 * HOOK - 6144 * 16 / 2**20, HOOK, 2 * HOOK])
    assert budgeted.stages[0].kept == 0 and kept.stages[0].kept / 2**20 == pytest.approx(2 * HOOK)


@pytest.mark.parametrize(
    "harvest, sentence",
    [
        ({"disk_gib": 0.5 * HOOK * MIB}, "harvest.disk_gib: .* do not hold .* for one SAE: blocks.1.hook_resid_post take 0.00229 GiB"),
        ({"disk_gib": 1.5 * HOOK * MIB, "outlier_norm": 10.0}, "harvest.outlier_norm: .* raise harvest.disk_gib until one pass is enough"),
        ({"disk_gib": 1.0, "rolling": 3}, r"harvest: rolling \(3\) bounds the disk already: leave disk_gib out"),
        ({"memory_gib": 0.0}, "harvest.memory_gib: should be greater than 0"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_kept_is_refused(tmp_path, text, harvest, sentence):
    with pytest.raises((InputError, SweepFileError), match=sentence):
        planned(tmp_path, text, None, harvest)
