"""Random 80/20 splits as the published code draws them, and a validation part.

All shuffle the samples in the order of the annotation file and train on the first 80 %, so a split
is the published one only for the same file. They differ in their seeds:

* `paper`: one split, seed 42;
* `fast-vqa`: split i has seed 42 (i + 1); the published loop skips split 0 and runs 1 to 9;
* `sama`: split i has seed 123 i (ten of them), for videos and for images.

None of them knows which samples show the same content. A data set with official parts should be
used with these.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

Protocol = Literal["paper", "fast-vqa", "sama"]

# Every protocol has seeds `factor * (index + shift)` for its `splits` indices.
_FACTOR: Mapping[Protocol, int] = {"paper": 42, "fast-vqa": 42, "sama": 123}
_SHIFT: Mapping[Protocol, int] = {"paper": 1, "fast-vqa": 1, "sama": 0}
_SPLITS: Mapping[Protocol, int] = {"paper": 1, "fast-vqa": 10, "sama": 10}

T = TypeVar("T")


def split(
    samples: int, index: int = 0, protocol: Protocol = "paper"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the training and of the test samples, both in shuffled order.

    Args:
        samples: how many there are.
        index: which of the protocol's splits, from 0.
        protocol: who draws it; see the module's docstring.

    Raises:
        ValueError: fewer than two samples, an unknown protocol, or a split it does not have.

    >>> split(5, index=0, protocol="paper")
    ((3, 1, 2, 4), (0,))
    """
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}")
    order = list(range(samples))
    # The published splits come from this generator.
    random.Random(split_seed(index, protocol)).shuffle(order)  # noqa: S311
    trained = int(0.8 * samples)
    return tuple(order[:trained]), tuple(order[trained:])


def split_seed(index: int, protocol: Protocol) -> int:
    """The seed of a published split.

    Raises:
        ValueError: an unknown protocol, or a split it does not have.

    >>> [split_seed(3, "fast-vqa"), split_seed(3, "sama")]
    [168, 369]
    """
    if protocol not in _SPLITS:
        raise ValueError(f"protocol: expected one of {', '.join(_SPLITS)}, got {protocol!r}")
    if not 0 <= index < _SPLITS[protocol]:
        raise ValueError(
            f"index: expected 0 to {_SPLITS[protocol] - 1} for the protocol {protocol!r},"
            f" got {index}"
        )
    return _FACTOR[protocol] * (index + _SHIFT[protocol])


def hold_out_validation(
    train: Sequence[T], share: float = 0.1, seed: int = 0
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Set a random part of the training samples aside to choose epochs and settings on.

    Choosing on the test part instead, as the published code does, flatters the test scores.

    Args:
        train: the training samples, or their numbers.
        share: how much of them to set aside, above 0 and below 1; two samples at least.
        seed: decides which.

    Returns:
        The samples left to train on and those set aside, each in their order in `train`.

    Raises:
        ValueError: another share, or fewer than two samples would be left to train on.

    >>> hold_out_validation("abcdefghij", share=0.2)
    (('a', 'b', 'c', 'd', 'e', 'f', 'h', 'i'), ('g', 'j'))
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected more than 0 and less than 1, got {share}")
    count = max(2, round(share * len(train)))
    if len(train) - count < 2:
        raise ValueError(
            f"train: expected at least two samples beside {count} for validation, got {len(train)}"
        )
    drawn = random.Random(seed).sample(range(len(train)), count)  # noqa: S311
    aside = frozenset(drawn)
    kept = tuple(sample for number, sample in enumerate(train) if number not in aside)
    return kept, tuple(sample for number, sample in enumerate(train) if number in aside)
