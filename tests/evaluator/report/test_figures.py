"""The plots: what is on them, that odd numbers do not break them, and that the same data gives the same bytes."""

import math
import struct
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result, in_order
from scopemill.evaluator.report.export import save
from scopemill.evaluator.report.fidelity_figure import fidelity_figure, frontiers
from scopemill.evaluator.report.frequency_figure import frequency_figure
from scopemill.evaluator.report.panels import columns_for
from scopemill.evaluator.report.training_figure import training_figure
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training.history import Row


def result(layer=0, site="resid_post", sparsity=0.001, step=100, l0=50.0, fvu=0.3, delta_loss=0.2, **changes) -> Result:
    fields = dict(
        hook=f"blocks.{layer}.hook_{site}", layer=layer, site=site, architecture="jumprelu", width=4096, sparsity=sparsity, step=step,
        tokens=step * 1024, l0=l0, fvu=fvu, dead_fraction=0.1, loss_clean=3.0, loss_spliced=3.0 + delta_loss, loss_zero_ablated=8.0,
        loss_mean_ablated=6.0, delta_loss=delta_loss, recovered_zero=1 - delta_loss / 5, recovered_mean=1 - delta_loss / 3,
        path=f"saes/{layer}/{site}/{changes.get('width')}/{changes.get('architecture')}/{sparsity}/{step}",
    )  # fmt: skip
    return Result(**(fields | changes))


def evaluation(counts=(0, 5, 9, 1), never=2, **changes) -> Evaluation:
    return Evaluation(result(**changes), Histogram([-4.0, -3.0, -2.0, -1.0, 0.0], list(counts), never), 4096, {})


def row(tokens: int, **changes) -> Row:
    fields = dict(
        step=tokens // 10, tokens=tokens, loss=1.0, reconstruction=0.3, sparsity=50.0, l0=50.0, fvu=0.3, dead_latents=4, learning_rate=1e-3,
        sparsity_coefficient=0.001, sparsity_factor=1.0, steps_per_second=9.0, waiting_share=0.1,
    )  # fmt: skip
    return Row(**(fields | changes))


def panels(figure) -> dict[str, object]:
    return {ax.get_title("left"): ax for ax in figure.axes}


def legend(figure) -> list[str]:
    return [text.get_text() for key in figure.legends for text in key.get_texts()]


def texts(figure) -> str:
    return " | ".join(t.get_text() for t in figure.texts + [t for ax in figure.axes for t in ax.texts])


def line_through(ax, points: list[tuple[float, float]]) -> bool:
    return any(list(zip(*line.get_data(), strict=True)) == points for line in ax.lines)


def test_the_frontier_is_of_each_hooks_final_checkpoints():
    sparse, dense = result(sparsity=0.01, l0=10, fvu=0.5), result(sparsity=0.001, l0=100, fvu=0.2)
    beaten = result(sparsity=0.005, l0=60, fvu=0.6)
    early = result(sparsity=0.001, step=1, l0=1, fvu=0.01)  # would beat all, but is not final
    elsewhere = result(layer=1, l0=5, fvu=0.05)
    found = frontiers([early, beaten, dense, sparse, elsewhere], "fvu")
    assert found == {"blocks.0.hook_resid_post": [sparse, dense], "blocks.1.hook_resid_post": [elsewhere]}


def test_a_measurement_without_a_number_is_on_no_frontier_and_hides_none():
    good = result(sparsity=0.001, l0=50, fvu=0.3)
    broken = [result(sparsity=s, l0=l0, fvu=fvu) for s, l0, fvu in ((0.1, 0.0, 1.0), (0.2, 20.0, math.nan), (0.3, math.nan, 0.1))]
    assert frontiers([*broken, good], "fvu") == {good.hook: [good]}
    assert "3 not drawn" in texts(fidelity_figure([*broken, good], "fvu"))


@pytest.mark.parametrize("quality", ["fvu", "delta_loss"])
def test_each_hook_has_a_panel_with_its_frontier_and_its_trails(quality):
    early, sparse, dense = result(step=1, l0=400, fvu=0.4), result(sparsity=0.01, l0=10, fvu=0.5), result(step=9, l0=100, fvu=0.2)
    early, sparse, dense = (r.__class__(**(vars(r) | {"delta_loss": r.fvu / 2})) for r in (early, sparse, dense))
    figure = fidelity_figure([early, dense, sparse, result(layer=11, site="mlp_out"), result(layer=2)], quality)
    assert list(panels(figure)) == ["layer 0 · resid_post", "layer 2 · resid_post", "layer 11 · mlp_out"]
    ax = panels(figure)["layer 0 · resid_post"]
    assert line_through(ax, [(r.l0, getattr(r, quality)) for r in (sparse, dense)])
    assert line_through(ax, [(r.l0, getattr(r, quality)) for r in (early, dense)])
    assert ax.get_xscale() == "log"
    assert "Pareto frontier (final checkpoints)" in legend(figure)


def test_axes_say_what_and_in_which_unit():
    assert "delta loss (nats/token)" in texts(fidelity_figure([result()], "delta_loss"))
    assert "L0 (active latents per token)" in texts(fidelity_figure([result()], "fvu"))


def test_looks_tell_architectures_and_widths_apart():
    kinds = [(a, w) for a in ("jumprelu", "standard") for w in (2**14, 2**16, 2**20)]
    figure = fidelity_figure([result(architecture=a, width=w) for a, w in kinds], "fvu")
    assert legend(figure)[:5] == ["jumprelu", "standard", "16k latents", "65k latents", "1m latents"]
    looks = {(line.get_marker(), line.get_color()) for line in figure.axes[0].lines if line.get_linestyle() == "None"}
    assert len(looks) == len(kinds)


def test_an_early_checkpoint_far_off_does_not_squash_the_final_ones():
    ax = fidelity_figure([result(step=1, fvu=40.0), result(step=9, fvu=0.3)], "fvu").axes[0]
    assert ax.get_ylim()[1] < 1


def test_a_negative_delta_loss_is_on_the_axes():
    ax = fidelity_figure([result(delta_loss=-0.01), result(sparsity=0.01, delta_loss=0.02)], "delta_loss").axes[0]
    assert ax.get_ylim()[0] < -0.01


@pytest.mark.parametrize(("count", "sites", "columns"), [(1, 1, 1), (4, 1, 2), (24, 1, 6), (26, 1, 6), (78, 3, 6), (6, 3, 3), (8, 2, 4)])
def test_grid(count, sites, columns):
    assert columns_for(count, sites) == columns


def test_many_hooks_stay_a_page_wide_with_a_site_per_column():
    sites = ("attn_z", "mlp_out", "resid_post")
    results = [result(layer=layer, site=site) for layer in range(26) for site in sites]
    figure = fidelity_figure(results, "fvu")
    assert len(figure.axes) == 78 and max(figure.get_size_inches()) < 25 and figure.get_size_inches()[0] < 13
    columns = {round(ax.get_position().x0, 4): set() for ax in figure.axes}
    for title, ax in panels(figure).items():
        columns[round(ax.get_position().x0, 4)].add(title.split()[-1])
    assert all(len(of_column) == 1 for of_column in columns.values())


def test_in_order_counts_layers():
    hooks = [(10, "resid_post"), (9, "resid_post"), (9, "attn_z")]
    assert [(r.layer, r.site) for r in in_order([result(layer=n, site=s) for n, s in hooks])] == hooks[::-1]


def test_frequencies_are_shares_of_the_width_of_final_checkpoints():
    figure = frequency_figure([evaluation(step=1, counts=(8, 0, 0, 0)), evaluation(step=2, counts=(0, 5, 3, 0), never=8)])
    (stairs,) = figure.axes[0].patches
    values, edges, _ = stairs.get_data()
    assert list(values) == [0, 100 * 5 / 16, 100 * 3 / 16, 0] and list(edges) == [-4, -3, -2, -1, 0]
    assert "never fire: 50.0%" in texts(figure)


def test_frequencies_of_an_sae_that_never_fires():
    assert "never fire: 100.0%" in texts(frequency_figure([evaluation(counts=(0, 0, 0, 0), never=16)]))


def test_few_saes_are_named_and_many_are_coloured_by_sparsity():
    few = training_figure({f"sae $\\{i}$ _": [row(10), row(20)] for i in range(8)})
    assert len(legend(few)) == 8 and len(few.axes) == 4
    many = training_figure({str(i): [row(t, sparsity_coefficient=0.001 * (1 + i % 3)) for t in (10, 20)] for i in range(120)})
    assert legend(many) == ["sparsity 0.001", "sparsity 0.002", "sparsity 0.003"]
    assert [len(ax.lines) for ax in many.axes] == [120] * 4


def test_a_long_history_is_thinned_to_means():
    figure = training_figure({"a": [row(10 * (i + 1), loss=1.0 + i % 2) for i in range(4000)]})
    y = figure.axes[0].lines[0].get_ydata()
    assert len(y) <= 400 and set(y) == {1.5}


def test_histories_with_gaps_are_drawn():
    save_nowhere = Bucket("memory://curves")
    rows = [row(10, fvu=math.nan, l0=0.0, loss=0.0), row(20, fvu=math.nan, l0=0.0)]
    save(training_figure({"a": rows, "empty": [], "one": [row(10)]}), save_nowhere, "gaps")


@pytest.mark.parametrize("figure", [fidelity_figure([], "fvu"), frequency_figure([]), training_figure({}), training_figure({"a": []})])
def test_nothing_to_plot_says_so(figure):
    assert not figure.axes and texts(figure).endswith(".")


def test_png_and_svg_lie_in_the_bucket_and_the_svg_is_the_same_twice(tmp_path):
    bucket = Bucket(str(tmp_path))
    for name in ("a", "b"):
        save(fidelity_figure([result(), result(layer=1), result(step=1)], "fvu"), bucket, f"plots/{name}")
    assert bucket.find("plots") == ["plots/a.png", "plots/a.svg", "plots/b.png", "plots/b.svg"]
    assert bucket.read("plots/a.svg") == bucket.read("plots/b.svg")
    png = bucket.read("plots/a.png")
    width = fidelity_figure([result(), result(layer=1)], "fvu").get_size_inches()[0]
    assert png.startswith(b"\x89PNG") and struct.unpack(">I", png[16:20])[0] == pytest.approx(150 * width, abs=1)
    assert ElementTree.fromstring(bucket.read("plots/a.svg")).tag.endswith("svg")
    assert b"date" not in bucket.read("plots/a.svg").lower()


def test_plotting_leaves_the_users_settings_alone_and_ignores_them():
    first = fidelity_figure([result()], "fvu").get_facecolor()
    with matplotlib.rc_context({"figure.facecolor": "black", "text.parse_math": True}):
        before = dict(matplotlib.rcParams)
        assert fidelity_figure([result()], "fvu").get_facecolor() == first
        assert dict(matplotlib.rcParams) == before


def test_a_name_that_looks_like_math_is_text(tmp_path):
    figure = fidelity_figure([result(architecture="$\\broken$", site="$_$")], "fvu")
    save(figure, Bucket(str(tmp_path)), "math")
    svg = Bucket(str(tmp_path)).read("math.svg").decode()
    assert "$\\broken$" in svg and "$_$" in svg
