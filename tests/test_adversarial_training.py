"""The recipes of adversarial training against the published procedure, derived again in float64.

Wu, Xia and Wang (2020) climb with a proxy: a copy of the model that takes one step of SGD against
the loss. The difference, at gamma times the weight's norm, is added; the base steps there; then the
same is subtracted.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import same_bits
from torch import Tensor, nn
from torch.nn import functional

from torch_awp import AdversarialWeightPerturbation, freeze_running_stats

RECIPES = Path(__file__).parent.parent / "examples" / "RECIPES.md"
# Number of its block on the page.
ATTACK, PGD, TRADES_LOSS, TRADES, ATTACHED_PGD, ATTACHED_TRADES = range(6)
BATCHES, EPOCHS, WARM_UP = 2, 2, 1
BETA = 6.0
Loss = Callable[[nn.Module], Tensor]


class AllEpochs(list[tuple[Tensor, Tensor]]):
    """Batches of several epochs one after the other; as long as a loader is: one epoch."""

    def __len__(self) -> int:
        return BATCHES


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
    ).double()


def images() -> AllEpochs:
    torch.manual_seed(1)
    shape = (6, 3, 8, 8)
    return AllEpochs(
        (torch.rand(shape, dtype=torch.float64), torch.randint(10, shape[:1]))
        for _ in range(EPOCHS * BATCHES)
    )


def documented_blocks() -> list[str]:
    """What the page shows, in the order of the numbers above."""
    section = RECIPES.read_text(encoding="utf-8").split("\n## Adversarial training\n")[1]
    return re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)


def documented_attack() -> Any:
    names: dict[str, Any] = {"torch": torch}
    exec(documented_blocks()[ATTACK], names)
    return names["attack"]


def run_recipe(number: int, gamma: float | None = None) -> tuple[nn.Module, list[Tensor]]:
    """Train by a recipe without its weight decay; the model and what the attacks gave."""
    attack, blocks = documented_attack(), documented_blocks()
    code = blocks[number]
    assert "weight_decay=5e-4" in code
    code = code.replace("weight_decay=5e-4", "weight_decay=0.0")
    if gamma is not None:
        code = re.sub(r"gamma=\w+-\w+", f"gamma={gamma}", code)
    attacked: list[Tensor] = []

    def recording(*args: Any) -> Tensor:
        attacked.append(attack(*args))
        return attacked[-1]

    model = network()
    names: dict[str, Any] = {
        "AdversarialWeightPerturbation": AdversarialWeightPerturbation,
        "freeze_running_stats": freeze_running_stats,
        "torch": torch, "nn": nn, "functional": functional,
        "model": model, "images": images(), "warm_up": WARM_UP, "attack": recording,
    }  # fmt: skip
    exec(blocks[TRADES_LOSS], names)
    exec(code, names)
    return model, attacked


def proxys_move(model: nn.Module, loss_of: Loss, gamma: float) -> dict[str, Tensor]:
    """What the published procedure adds to the weights."""
    proxy = copy.deepcopy(model)
    descent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss_of(proxy)).backward()
    descent.step()
    moves = {}
    for (name, home), new in zip(model.named_parameters(), proxy.parameters(), strict=True):
        if home.ndim > 1 and "weight" in name:
            difference = new.detach() - home.detach()
            moves[name] = gamma * home.detach().norm() / (difference.norm() + 1e-20) * difference
    return moves


@torch.no_grad()
def add(model: nn.Module, moves: dict[str, Tensor], sign: int) -> None:
    for name, move in moves.items():
        model.get_parameter(name).add_(sign * move)


def published_step(
    model: nn.Module, base: torch.optim.Optimizer, loss_of: Loss, gamma: float
) -> dict[str, Tensor]:
    moves = proxys_move(model, loss_of, gamma)
    add(model, moves, 1)
    base.zero_grad()
    loss_of(model).backward()
    base.step()
    add(model, moves, -1)
    return moves


def our_step(model: nn.Module, optimizer: AdversarialWeightPerturbation, loss_of: Loss) -> None:
    for p in optimizer.passes():
        optimizer.zero_grad()
        with freeze_running_stats(model, p.climbs):
            loss_of(model).backward()
    optimizer.step()


def pgd_loss(x: Tensor, moved: Tensor, y: Tensor) -> Loss:
    return lambda model: functional.cross_entropy(model(moved), y)


def trades_loss(x: Tensor, moved: Tensor, y: Tensor) -> Loss:
    """Cross-entropy of the clean images and beta times the Kullback-Leibler divergence, summed."""

    def loss(model: nn.Module) -> Tensor:
        clean, attacked = model(x).log_softmax(1), model(moved).log_softmax(1)
        divergence = (clean.exp() * (clean - attacked)).sum(1).mean()
        return BETA * divergence - clean[range(len(y)), y].mean()

    return loss


def largest_difference(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize(
    ("number", "gamma", "loss"), [(PGD, 1e-2, pgd_loss), (TRADES, 5e-3, trades_loss)]
)
def test_a_recipe_takes_the_steps_of_the_published_procedure_after_its_warm_up(number, gamma, loss):
    ours, attacked = run_recipe(number)
    unperturbed, _ = run_recipe(number, gamma=0.0)

    theirs = network()
    base = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for step, ((x, y), moved) in enumerate(zip(images(), attacked, strict=True)):
        own_gamma = gamma if step >= WARM_UP * BATCHES else 0.0
        published_step(theirs, base, loss(x, moved, y), own_gamma)

    assert largest_difference(ours, theirs) < 1e-9
    assert largest_difference(ours, unperturbed) > 1e-5


@pytest.mark.parametrize(("loop", "attached"), [(PGD, ATTACHED_PGD), (TRADES, ATTACHED_TRADES)])
def test_a_recipe_attached_equals_its_loop_to_the_bit(loop, attached):
    expected, measured = (run_recipe(number)[0].state_dict() for number in (loop, attached))

    assert same_bits(list(measured.values()), list(expected.values()))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_acts_on_w_here_and_on_w_plus_v_there(decay):
    (x, y), *_ = images()
    ours, theirs = network(), network()
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": decay}
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(ours.parameters(), **settings), gamma=1e-2
    )

    our_step(ours, optimizer, pgd_loss(x, x, y))
    moves = published_step(
        theirs, torch.optim.SGD(theirs.parameters(), **settings), pgd_loss(x, x, y), 1e-2
    )

    add(theirs, {name: 0.1 * decay * move for name, move in moves.items()}, 1)
    assert largest_difference(ours, theirs) < 1e-12


def test_running_statistics_can_be_those_of_the_second_pass_as_there():
    (x, y), *_ = images()
    ours, theirs = network(), network()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(ours.parameters(), lr=0.1), 1e-2)

    our_step(ours, optimizer, pgd_loss(x, x, y))
    published_step(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), pgd_loss(x, x, y), 1e-2)

    for own, wanted in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12)


def test_the_attack_climbs_within_the_ball_and_leaves_gradients_alone():
    (x, y), *_ = images()
    model, attack = network(), documented_attack()
    functional.cross_entropy(model(x), y).backward()
    before = [weight.grad.clone() for weight in model.parameters()]

    moved = attack(lambda z: functional.cross_entropy(model(z), y), x, torch.zeros_like(x))

    assert float((moved - x).abs().max()) <= 8 / 255 + 1e-12
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert not moved.requires_grad
    assert functional.cross_entropy(model(moved), y) > functional.cross_entropy(model(x), y) + 0.01
    assert all(
        weight.grad.equal(old) for weight, old in zip(model.parameters(), before, strict=True)
    )
