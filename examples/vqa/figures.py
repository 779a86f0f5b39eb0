"""Figures of the loss landscape and of the train-test gap, drawn into axes of the caller.

Axes come from `matplotlib.figure.Figure().subplots()`, so that nothing depends on a window system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from torch import Tensor

# Okabe and Ito's colours, told apart by everybody.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")


def draw_curves(axes: Axes, alphas: Tensor, curves: Mapping[str, Tensor]) -> None:
    """Loss curves of several models in one axes, as in Figures 1(c, d) and 2 of the paper.

    Args:
        axes: where to draw.
        alphas: positions [A].
        curves: per model its losses [A], or [S, A] for S runs or directions: then the line is their
            mean and the band reaches from the lowest to the highest.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> alphas = torch.linspace(-1, 1, 5)
    >>> draw_curves(axes, alphas, {"flat": alphas**2, "sharp": 9 * alphas**2})
    >>> [line.get_label() for line in axes.lines]
    ['flat', 'sharp']
    """
    for colour, (name, losses) in zip(_colours(len(curves)), curves.items(), strict=True):
        runs = losses.double().reshape(-1, len(alphas))
        axes.plot(alphas.tolist(), runs.mean(dim=0).tolist(), color=colour, label=name)
        if len(runs) > 1:
            low, high = runs.amin(dim=0), runs.amax(dim=0)
            axes.fill_between(
                alphas.tolist(), low.tolist(), high.tolist(), color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xlabel(r"$\alpha$, multiple of a filter-normalised direction")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)


def draw_contours(axes: Axes, alphas: Tensor, betas: Tensor, losses: Tensor) -> None:
    """A loss surface [A, B] from above, the model itself at the cross."""
    filled = axes.contourf(
        alphas.tolist(), betas.tolist(), losses.T.tolist(), levels=24, cmap="viridis"
    )
    levels = list(filled.levels)[::3]
    lines = axes.contour(filled, levels=levels, colors="white", linewidths=0.5, alpha=0.7)
    bar = axes.figure.colorbar(filled, ax=axes, label="loss")
    bar.add_lines(lines)
    axes.plot(0, 0, "+", color="white", markersize=10)
    axes.set_xlabel(r"$\alpha$, along the first direction")
    axes.set_ylabel(r"$\beta$, along the second")
    axes.set_aspect("equal")


def draw_surface(axes: Axes3D, alphas: Tensor, betas: Tensor, losses: Tensor) -> None:
    """A loss surface [A, B] in perspective; `axes` has `projection="3d"`."""
    rows, columns = torch.meshgrid(alphas, betas, indexing="ij")
    axes.plot_surface(rows.numpy(), columns.numpy(), losses.numpy(), cmap="viridis", linewidth=0)
    axes.set_xlabel(r"$\alpha$")
    axes.set_ylabel(r"$\beta$")
    axes.set_zlabel("loss")
    axes.locator_params(nbins=5)
    axes.set_box_aspect(None, zoom=0.85)  # or the label of the height is cut off


def draw_gaps(
    axes: Axes,
    train: Mapping[str, Sequence[float]],
    test: Mapping[str, Sequence[float]],
    measure: str = "SRCC",
) -> None:
    """Train minus test score after every epoch, as in Figure 1(a, b) of the paper.

    Args:
        axes: where to draw.
        train: per model its score on the training set after epochs 1, 2, ...
        test: the same on the test set.
        measure: the score's name.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_gaps(axes, {"model": [0.8, 0.9]}, {"model": [0.7, 0.7]})
    >>> [f"{gap:.1f}" for gap in axes.lines[0].get_ydata()]
    ['0.1', '0.2']
    """
    for colour, name in zip(_colours(len(train)), train, strict=True):
        gaps = [seen - unseen for seen, unseen in zip(train[name], test[name], strict=True)]
        axes.plot(range(1, len(gaps) + 1), gaps, ".-", color=colour, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"train - test {measure}")
    axes.legend(frameon=False)


def _colours(number: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(number)]
