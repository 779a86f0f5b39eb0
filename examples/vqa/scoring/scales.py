"""On which scale a score is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreScale:
    """From a model's own score to the one that is told, and what to call that."""

    name: str
    tell: Callable[[float], float]


def own_scale(why: str = "") -> ScoreScale:
    """The model's scores as they are."""
    return ScoreScale(f"the model's own ({why})" if why else "the model's own", float)


def _sigmoid(file: str, mean: float, deviation: float) -> ScoreScale:
    def tell(score: float) -> float:
        standardised = (score - mean) / deviation
        # Two forms, neither of which overflows on its side.
        if standardised >= 0:
            return 1 / (1 + math.exp(-standardised))
        return math.exp(standardised) / (1 + math.exp(standardised))

    return ScoreScale(
        f"0 to 1, as published for {file} alone, of which it makes sigmoid((raw - m) / s)", tell
    )


# Mean and deviation of raw scores, as the authors of the weights give them.
PUBLISHED = {
    "fast_vqa": _sigmoid("FAST_VQA_B_1_4.pth", -0.110198185, 0.04178565),
    "fast_vqa_m": _sigmoid("FAST_VQA_M_1_4.pth", 0.023889644, 0.030781006),
}
