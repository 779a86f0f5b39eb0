"""What is drawn is what was measured: right values, right axis, right names."""

import pytest
import torch
from matplotlib.figure import Figure

from vqa.figures import draw_contours, draw_curves, draw_seeds, draw_surface

ALPHAS = torch.linspace(-1, 1, 5)


def test_curves_are_means_with_a_band_where_there_are_several():
    axes = Figure().subplots()
    runs = torch.stack([ALPHAS**2, 3 * ALPHAS**2])
    draw_curves(axes, ALPHAS, {"one": ALPHAS**2, "two": runs})
    one, two = axes.lines
    assert one.get_ydata() == pytest.approx((ALPHAS**2).tolist())
    assert two.get_ydata() == pytest.approx((2 * ALPHAS**2).tolist())
    assert two.get_xdata() == pytest.approx(ALPHAS.tolist())
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 1.0), (1.0, 3.0)} <= corners
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    assert one.get_color() != two.get_color()


def test_curves_take_the_colours_that_they_are_given():
    axes = Figure().subplots()
    draw_curves(axes, ALPHAS, {"one": ALPHAS, "two": -ALPHAS}, ["black", "red"])
    assert [line.get_color() for line in axes.lines] == ["black", "red"]


def test_many_curves_can_still_be_told_apart():
    axes = Figure().subplots()
    draw_curves(axes, ALPHAS, {str(number): number * ALPHAS for number in range(24)})
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 24


def test_a_legend_hides_no_curve():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    draw_curves(axes, ALPHAS, {"one": ALPHAS, "two": -ALPHAS})
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1


def test_surfaces_side_by_side_share_their_scale():
    figure = Figure()
    above, perspective = figure.add_subplot(121), figure.add_subplot(122, projection="3d")
    losses = ALPHAS[:, None] + 6 * ALPHAS[None]  # -7 to 7
    draw_contours(above, ALPHAS, losses, limits=(-10, 30))
    draw_surface(perspective, ALPHAS, losses, limits=(-10, 30))
    assert above.collections[0].levels[[0, -1]].tolist() == [-10, 30]
    assert perspective.get_zlim() == (-10, 30)
    assert perspective.collections[0].get_clim() == (-10, 30)


def test_contours_have_alpha_to_the_right_and_beta_upwards():
    axes = Figure().subplots()
    losses = ALPHAS[:, None].expand(5, 5)  # rises with alpha alone: lines are upright
    draw_contours(axes, ALPHAS, losses, limits=(-1, 1))
    filled, lines, *_ = axes.collections
    assert filled.get_array().min() < 0 < filled.get_array().max()
    for path in lines.get_paths():
        assert len(set(path.vertices[:, 0].round(6).tolist())) <= 1
    assert axes.get_xlim() == (-1, 1)
    assert axes.get_ylim() == (-1, 1)


def test_a_surface_spans_positions_and_losses():
    axes = Figure().add_subplot(projection="3d")
    draw_surface(axes, ALPHAS, ALPHAS[:, None] + 10 * ALPHAS[None], limits=(-11, 11))
    assert axes.xy_dataLim.intervalx.tolist() == [-1, 1]
    assert axes.xy_dataLim.intervaly.tolist() == [-1, 1]
    assert axes.zz_dataLim.intervalx.tolist() == [-11, 11]


def test_seeds_are_dots_joined_by_lines_over_bars_of_the_mean():
    axes = Figure().subplots()
    draw_seeds(axes, {"plain": [1.0, 3.0], "awp": [4.0, 8.0]}, ["grey", "blue"])
    assert [bar.get_height() for bar in axes.patches] == [2.0, 6.0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 4.0], [3.0, 8.0]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["plain", "awp"]
