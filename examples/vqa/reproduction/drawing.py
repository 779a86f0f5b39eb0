"""The figures: how far the loss rises around the weights of finished runs."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from vqa.figures import draw_curves
from vqa.io.files import replacing
from vqa.reproduction.catalogue import LossFigure, Panel
from vqa.reproduction.measured import rises
from vqa.reproduction.sweep import Sweep
from vqa.store import Store

_WIDTH, _HEIGHT = 4.4, 4.6  # inches of a panel


def draw(figure: LossFigure, sweep: Sweep, store: Store, path: Path) -> bool:
    """Draw the curves of finished runs; their band reaches over seeds.

    Returns:
        Whether there was one; nothing is written otherwise.
    """
    every = [(panel.title, _curves(panel, sweep, store)) for panel in figure.panels]
    panels = [(title, found) for title, found in every if found]
    if not panels:
        return False
    drawn = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    for axes, (title, found) in zip(
        drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        positions = next(iter(found.values()))[0]
        draw_curves(axes, positions, {label: own for label, (_, own) in found.items()})
        axes.set_ylabel("rise of the training loss")
        axes.set_title(title, fontsize="medium")
    drawn.suptitle(_title(figure, sweep), fontsize="medium")
    with replacing(path) as unfinished:
        drawn.savefig(unfinished, dpi=120, format="png")
    return True


def _curves(
    panel: Panel, sweep: Sweep, store: Store
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Positions [A] and rises [S, A] by label."""
    found = {curve.label: rises(curve, sweep, store) for curve in panel.curves}
    return {
        label: (torch.tensor(own[0], dtype=torch.float64), torch.tensor(own[1]))
        for label, own in found.items()
        if own is not None
    }


def _title(figure: LossFigure, sweep: Sweep) -> str:
    if sweep.data.comparable:
        return figure.title
    return f"{figure.title}\nhere: {sweep.data.name}, synthetic scores"
