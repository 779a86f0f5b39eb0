"""Random 80/20 splits as the published code draws them, and a validation part.

All shuffle the samples in the order of the annotation file and train on the first 80 %, so a split
is the published one only for the same file. None knows which samples show the same content. A data
set with official parts should be used with these.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

Protocol = Literal["paper", "fast-vqa", "sama"]

# By the numbers of the splits, for videos and for images. FAST-VQA's loop skips split 0.
_SEEDS: Mapping[Protocol, Sequence[int]] = {
    "paper": [42],
    "fast-vqa": [42 * (index + 1) for index in range(10)],
    "sama": [123 * index for index in range(10)],
}

T = TypeVar("T")


def split(
    samples: int, index: int = 0, protocol: Protocol = "paper"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the training and of the test samples, both in shuffled order."""
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}")
    if protocol not in _SEEDS:
        raise ValueError(f"protocol: expected one of {', '.join(_SEEDS)}, got {protocol!r}")
    seeds = _SEEDS[protocol]
    if not 0 <= index < len(seeds):
        raise ValueError(
            f"index: expected 0 to {len(seeds) - 1} for the protocol {protocol!r}, got {index}"
        )
    order = list(range(samples))
    # The published splits come from this generator.
    random.Random(seeds[index]).shuffle(order)  # noqa: S311
    trained = int(0.8 * samples)
    return tuple(order[:trained]), tuple(order[trained:])


def hold_out_validation(
    train: Sequence[T], share: float = 0.1, seed: int = 0
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Set a random part of the training samples aside to choose epochs and settings on.

    Choosing on the test part instead, as the published code does, flatters the test scores.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected more than 0 and less than 1, got {share}")
    count = max(2, round(share * len(train)))
    if len(train) - count < 2:
        raise ValueError(
            f"train: expected at least two samples beside {count} for validation, got {len(train)}"
        )
    aside = frozenset(random.Random(seed).sample(range(len(train)), count))  # noqa: S311
    kept = tuple(sample for number, sample in enumerate(train) if number not in aside)
    return kept, tuple(sample for number, sample in enumerate(train) if number in aside)
