"""A documented *synthetic* opinion score: nobody has watched these clips.

From the chain that made a clip to a mean opinion score (MOS) in [1, 5]:

1. *Content masking.* Texture hides noise and coding artefacts, smooth content hides a loss of
   detail, little motion hides a stall: `visible = strength * (1 - masking * hidden)`. Wrong
   exposure and fading change how a picture looks more than they damage it and count half.
2. *Pooling.* `impairment = (sum_i visible_i ** 2) ** 0.5`: the worst degradation dominates.
3. *Psychometric curve.* `quality = 1 + 4 / (1 + (impairment / midpoint) ** slope)`.
4. *Raters.* Each of `raters` has a lasting bias, adds its own noise, and answers on the five-point
   scale of ITU-T P.910; the MOS is the mean answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqa.io.video import Pixels
from vqa.synthetic.degradations import Chain, Link


@dataclass(frozen=True)
class Opinion:
    """Constants of the equations above."""

    masking: float = 0.4
    midpoint: float = 0.5
    slope: float = 2.5
    raters: int = 24
    rater_bias: float = 0.25
    rater_noise: float = 0.6


@dataclass(frozen=True)
class Content:
    """How busy a pristine clip is, each in [0, 1): texture in space, motion in time."""

    texture: float
    motion: float


def measure_content(clip: Pixels) -> Content:
    """Texture and motion of a pristine clip [T, H, W, 3]; a single frame stands still.

    Both are mean absolute differences of the luma between neighbours (in a row, and in time),
    squashed by `d / (d + 10)` for a difference of `d` grey levels.
    """
    clip = np.repeat(clip, 2, axis=0) if len(clip) == 1 else clip
    luma = clip.astype(np.float32).mean(axis=-1)
    texture = float(np.abs(np.diff(luma, axis=2)).mean())
    motion = float(np.abs(np.diff(luma, axis=0)).mean())
    return Content(texture / (texture + 10), motion / (motion + 10))


def visible_strength(link: Link, content: Content, opinion: Opinion) -> float:
    """Strength of a degradation after content masking, in [0, 1]."""
    hidden = 0.0
    if link.kind in ("noise", "h264", "mpeg4", "jpeg"):
        hidden = content.texture
    elif link.kind in ("rescale", "blur", "motion_blur"):
        hidden = 1 - content.texture
    elif link.kind in ("frozen", "stutter"):
        hidden = 1 - content.motion
    annoyance = 0.5 if link.kind in ("exposure", "fading") else 1.0
    return annoyance * link.strength * (1 - opinion.masking * hidden)


def expected_quality(chain: Chain, content: Content, opinion: Opinion) -> float:
    """Quality in [1, 5] that the average rater perceives; 5 for a chain without strength."""
    impairment = np.linalg.norm([visible_strength(link, content, opinion) for link in chain])
    return float(1 + 4 / (1 + (impairment / opinion.midpoint) ** opinion.slope))


def rate(
    qualities: Sequence[float], opinion: Opinion, random: np.random.Generator
) -> NDArray[np.float64]:
    """Mean opinion scores [N] of simulated raters for N perceived qualities."""
    bias = random.normal(0.0, opinion.rater_bias, size=opinion.raters)
    noise = random.normal(0.0, opinion.rater_noise, size=(len(qualities), opinion.raters))
    answers = np.rint(np.asarray(qualities)[:, None] + bias + noise)
    scores: NDArray[np.float64] = np.clip(answers, 1, 5).mean(axis=1)
    return scores
