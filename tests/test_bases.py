"""Any base: bitwise the plain optimizer where nothing is perturbed, a working step elsewhere."""

import copy
import inspect
import re

import pytest
import pytorch_optimizer
import torch
from reference import batch, closure_for, same_bits, small_net, weights_of
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

TORCH_OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
)
THIRD_PARTY = ["Lion", "Lamb", "AdaBelief", "ScheduleFreeAdamW", "Prodigy", "Adan"]
FLAGS = ["foreach", "fused", "capturable", "maximize", "amsgrad", "nesterov", "differentiable"]
NEEDED_WITH = {"nesterov": {"momentum": 0.9}}
ZERO_GAMMA = [
    lambda base: AdversarialWeightPerturbation(base, gamma=0.0, steps=3),
    lambda base: RandomWeightPerturbation(base, gamma=0.0),
]
ACTIVE = [
    lambda base: AdversarialWeightPerturbation(base, gamma=0.1),
    lambda base: RandomWeightPerturbation(base, gamma=0.1),
]


def torch_variants() -> list[tuple[type[Optimizer], dict[str, object]]]:
    """Every class of torch.optim, as it is and with each of the flags it takes."""
    found: list[tuple[type[Optimizer], dict[str, object]]] = []
    for name in TORCH_OPTIMIZERS:
        cls = getattr(torch.optim, name)
        flags = [flag for flag in FLAGS if flag in inspect.signature(cls).parameters]
        found += [(cls, {}), *((cls, {flag: True, **NEEDED_WITH.get(flag, {})}) for flag in flags)]
    return found


def name_of(value: object) -> str:
    return value.__name__ if isinstance(value, type) else "-".join(value) or "plain"


def task_for(cls: type[Optimizer]) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    if cls.__name__ == "SparseAdam":
        embedding = nn.Sequential(nn.Embedding(9, 5, sparse=True), nn.Flatten())
        return embedding, (torch.randint(0, 9, (4, 2)), torch.randn(4, 10))
    if cls.__name__ == "Muon":  # takes matrices only
        layers = [nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 3, bias=False)]
        return nn.Sequential(*layers), batch(torch.float32)
    return small_net(torch.float32), batch(torch.float32)


def needs_closure(optimizer: Optimizer) -> bool:
    return type(getattr(optimizer, "base", optimizer)).__name__ == "LBFGS"


def train(optimizer: Optimizer, model: nn.Module, data: tuple[Tensor, Tensor]) -> list[Tensor]:
    closure = closure_for(model, data)
    for step in range(3):
        if step == 1 and not needs_closure(optimizer):
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)
    return weights_of(model)


def assert_same_training(cls, options, wraps) -> None:
    model, data = task_for(cls)
    plain = copy.deepcopy(model)
    plain_optimizer = cls(plain.parameters(), lr=1e-2, **options)
    expected = train(plain_optimizer, plain, data)
    for wrap in wraps:
        wrapped = copy.deepcopy(model)
        optimizer = wrap(cls(wrapped.parameters(), lr=1e-2, **options))
        assert same_bits(train(optimizer, wrapped, data), expected)
        torch.testing.assert_close(
            optimizer.state_dict()["state"], plain_optimizer.state_dict()["state"], rtol=0, atol=0
        )


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")
@pytest.mark.parametrize(("cls", "options"), torch_variants(), ids=name_of)
def test_gamma_zero_is_bitwise_the_plain_optimizer(cls, options):
    model, data = task_for(cls)
    try:
        train(cls(model.parameters(), lr=1e-2, **options), model, data)
    except (RuntimeError, AssertionError) as unsupported_here:
        # Then the wrapper fails like the plain optimizer, neither differently nor silently.
        for wrap in ZERO_GAMMA:
            with pytest.raises(type(unsupported_here), match=re.escape(str(unsupported_here)[:60])):
                train(wrap(cls(model.parameters(), lr=1e-2, **options)), model, data)
    else:
        assert_same_training(cls, options, ZERO_GAMMA)


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_gamma_zero_is_bitwise_the_third_party_optimizer(name):
    assert_same_training(getattr(pytorch_optimizer, name), {}, ZERO_GAMMA)


@pytest.mark.parametrize(
    "cls",
    [getattr(torch.optim, name) for name in TORCH_OPTIMIZERS if name != "LBFGS"]
    + [getattr(pytorch_optimizer, name) for name in THIRD_PARTY],
    ids=name_of,
)
def test_the_base_steps_on_the_gradients_at_the_perturbed_weights(cls):
    model, data = task_for(cls)
    if cls.__name__ != "SparseAdam":
        model, data = model.double(), tuple(t.double() for t in data)
    by_hand = copy.deepcopy(model)
    optimizer = AdversarialWeightPerturbation(cls(model.parameters(), lr=1e-2), gamma=0.1)
    plain = cls(by_hand.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.step(closure_for(model, data))
        closure_for(by_hand, data)()
        home = weights_of(by_hand)
        with torch.no_grad():
            for param in by_hand.parameters():
                if param.ndim > 1:
                    gradient = param.grad.to_dense()
                    param += 0.1 * param.norm() * gradient / gradient.norm()
        closure_for(by_hand, data)()
        with torch.no_grad():
            for param, weight in zip(by_hand.parameters(), home, strict=True):
                param.copy_(weight)
        plain.step()
    for param, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(param, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"line_search_fn": "strong_wolfe"}], ids=name_of)
@pytest.mark.parametrize("wrap", ACTIVE)
def test_lbfgs_steps_on_perturbed_gradients(wrap, options):
    model, data = task_for(torch.optim.LBFGS)
    plain = copy.deepcopy(model)
    start = weights_of(model)
    optimizer = wrap(torch.optim.LBFGS(model.parameters(), lr=0.5, **options))
    for _ in range(2):
        loss = optimizer.step(closure_for(model, data))
        torch.optim.LBFGS(plain.parameters(), lr=0.5, **options).step(closure_for(plain, data))
    assert loss.isfinite()
    assert not same_bits(weights_of(model), start)
    assert not same_bits(weights_of(model), weights_of(plain))


def test_lbfgs_without_a_closure_fails_as_it_does_alone():
    model, data = task_for(torch.optim.LBFGS)
    optimizer = AdversarialWeightPerturbation(torch.optim.LBFGS(model.parameters()))
    closure_for(model, data)()
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()


def test_a_base_that_ignores_its_closure_is_an_error():
    class Deaf(torch.optim.SGD):
        def step(self, closure=None):
            return None

    model, data = task_for(Deaf)
    optimizer = AdversarialWeightPerturbation(Deaf(model.parameters(), lr=0.1), gamma=0.1)
    with pytest.raises(RuntimeError, match=r"Deaf\.step\(\) never called its closure"):
        optimizer.step(closure_for(model, data))
