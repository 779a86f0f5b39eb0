"""Features and opinion scores of three video data sets, as the repository vztu/VIDEVAL has them.

Z. Tu et al., "UGC-VQA: Benchmarking blind video quality assessment for user generated content",
IEEE Transactions on Image Processing 30, 2021.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

VideoSet = Literal["konvid-1k", "live-vqc", "youtube-ugc"]

# File names begin so; the column of the scores in the second file.
_NAMES: Mapping[VideoSet, tuple[str, str]] = {
    "konvid-1k": ("KONVID_1K", "mos"),
    "live-vqc": ("LIVE_VQC", "MOS"),
    "youtube-ugc": ("YOUTUBE_UGC", "MOSFull"),
}
# Rows of YouTube-UGC, from 1, whose clips have no colour; all published results leave them out.
_GREY = frozenset((
    3, 6, 10, 22, 23, 46, 51, 52, 68, 74, 77, 99, 103, 122, 136, 141, 158, 173, 368, 426, 467,
    477, 506, 563, 594, 639, 654, 657, 666, 670, 671, 681, 690, 697, 702, 703, 710, 726, 736,
    764, 768, 777, 786, 796, 977, 990, 1012, 1015, 1023, 1091, 1118, 1205, 1282, 1312, 1336,
    1344, 1380,
))  # fmt: skip


class VidevalError(ValueError):
    """The folder is not a clone of vztu/VIDEVAL; the message names the file."""


@dataclass(frozen=True)
class VideoTable:
    """Features float64 [N, F], NaN where missing, and opinion scores float32 [N]."""

    features: NDArray[np.float64]
    scores: NDArray[np.float32]


def load_tables(folder: Path) -> dict[VideoSet, VideoTable]:
    """The three data sets; rows in the order of the files, which KoNViD-1k's sorts by score.

    Args:
        folder: of a clone of the repository.

    Raises:
        VidevalError: a file is missing or does not hold what is expected.
    """
    return {name: _load(folder / "features", name) for name in get_args(VideoSet)}


def _load(folder: Path, name: VideoSet) -> VideoTable:
    prefix, column = _NAMES[name]
    features = _read_features(folder / f"{prefix}_VIDEVAL_feats.mat")
    scores = _read_scores(folder / f"{prefix}_metadata.csv", column)
    if len(features) != len(scores):
        raise VidevalError(
            f"{folder / prefix}: expected a score for every row of features, got {len(scores)}"
            f" and {len(features)}"
        )
    kept = [row for row in range(len(scores)) if name != "youtube-ugc" or row + 1 not in _GREY]
    return VideoTable(features[kept], scores[kept])


def _read_features(path: Path) -> NDArray[np.float64]:
    try:
        (matrix,) = (value for key, value in loadmat(str(path)).items() if not key.startswith("__"))
    except (OSError, ValueError, NotImplementedError) as error:
        raise VidevalError(f"{path}: expected a MATLAB file of one matrix ({error})") from error
    features = np.asarray(matrix, np.float64)
    if features.ndim != 2 or np.isinf(features).any():
        raise VidevalError(f"{path}: expected finite features [videos, features] or NaN")
    return features


def _read_scores(path: Path, column: str) -> NDArray[np.float32]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise VidevalError(f"{path}: expected a table of scores ({error})") from error
    scores = []
    for number, row in enumerate(rows, start=2):
        try:
            scores.append(float(row[column]))
        except (KeyError, TypeError, ValueError):
            scores.append(math.nan)
        if not math.isfinite(scores[-1]):
            raise VidevalError(f"{path}, row {number}: expected a number in the column {column!r}")
    return np.array(scores, np.float32)
