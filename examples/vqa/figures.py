"""Figures of the loss landscape and of the train-test gap, drawn into axes of the caller.

Axes come from `matplotlib.figure.Figure().subplots()`, so that nothing depends on a window system.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from torch import Tensor

# Okabe and Ito's colours, told apart by everybody.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_LINES = ("-", "--", ":", "-.")  # for those who come after the last colour


def draw_curves(
    axes: Axes, alphas: Tensor, curves: Mapping[str, Tensor], colours: Sequence[str] | None = None
) -> None:
    """Loss curves of several models in one axes, as in Figures 1(c, d) and 2 of the paper.

    Positions are [A], losses of a model [A], or [S, A] for S runs or directions: then the line is
    their mean and the band reaches from the lowest to the highest.
    """
    distinct = itertools.cycle((line, colour) for line in _LINES for colour in _COLOURS)
    styles = distinct if colours is None else (("-", colour) for colour in colours)
    for (line, colour), (name, losses) in zip(styles, curves.items(), strict=colours is not None):
        runs = losses.double().reshape(-1, len(alphas))
        axes.plot(alphas.tolist(), runs.mean(dim=0).tolist(), line, color=colour, label=name)
        if len(runs) > 1:
            low, high = runs.amin(dim=0), runs.amax(dim=0)
            axes.fill_between(
                alphas.tolist(), low.tolist(), high.tolist(), color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xlabel(r"$\alpha$, multiple of a filter-normalised direction")
    axes.set_ylabel("loss")
    # Above the axes: inside it would hide curves that are high up.
    axes.legend(
        frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2
    )


def draw_contours(
    axes: Axes, positions: Tensor, losses: Tensor, limits: tuple[float, float]
) -> None:
    """A loss surface [A, A] from above, on a scale from the lower to the upper of the limits.

    Positions are [A], the same along both directions.
    """
    places, levels = positions.tolist(), MaxNLocator(24).tick_values(*limits)
    filled = axes.contourf(places, places, losses.T.tolist(), levels=levels, cmap="viridis")
    levels = list(filled.levels)[::3]
    lines = axes.contour(filled, levels=levels, colors="white", linewidths=0.5, alpha=0.7)
    bar = axes.figure.colorbar(filled, ax=axes, label="loss", shrink=0.8)
    bar.add_lines(lines)
    axes.plot(0, 0, "+", color="white", markersize=10)  # the model itself
    axes.set_xlabel(r"$\alpha$, along the first direction")
    axes.set_ylabel(r"$\beta$, along the second")
    axes.set_aspect("equal")


def draw_surface(
    axes: Axes3D, positions: Tensor, losses: Tensor, limits: tuple[float, float]
) -> None:
    """The same in perspective, of height and colour; `axes` has `projection="3d"`."""
    low, high = limits
    rows, columns = (grid.numpy() for grid in torch.meshgrid(positions, positions, indexing="ij"))
    axes.plot_surface(
        rows, columns, losses.numpy(), cmap="viridis", linewidth=0, vmin=low, vmax=high
    )
    axes.set_zlim(low, high)
    axes.set_xlabel(r"$\alpha$")
    axes.set_ylabel(r"$\beta$")
    axes.set_zlabel("loss", labelpad=8)
    axes.tick_params(labelsize="small")
    axes.locator_params(nbins=4)
    axes.set_box_aspect(None, zoom=0.85)  # or the label of the height is cut off


def draw_seeds(axes: Axes, values: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """A bar for each model's mean, a dot for each of its seeds, a line through those of a seed."""
    places = range(len(values))
    means = [sum(runs) / len(runs) for runs in values.values()]
    axes.bar(places, means, color=colours, alpha=0.6)
    for of_one_seed in zip(*values.values(), strict=True):
        axes.plot(places, of_one_seed, "o-", color="black", linewidth=0.4, markersize=3)
    axes.set_xticks(places, [_narrow(name) for name in values], fontsize="small")


def _narrow(name: str) -> str:
    """Broken into lines, so that names beside one another have room."""
    return name.replace(", ", "\n").replace("=", "=\n").replace("plain ", "plain\n")
