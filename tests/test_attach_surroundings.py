"""An attached module under DDP, FSDP2 and ``torch.compile``."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from reference import same_bits, weights_of
from tiers import first_fast
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

# torch 2.6 about its own settings.
pytestmark = pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline")

RANKS = 2
STEPS = 3
WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=2),
    "update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}


class Net(nn.Module):
    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        if unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.net(x), y)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def batches(rank: int, pieces: int = 1) -> list[list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        [
            (torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator))
            for _ in range(pieces)
        ]
        for _ in range(STEPS)
    ]


def plainly(call: Any, optimizer: Any, data: Any) -> None:
    for pieces in data:
        optimizer.zero_grad()
        for x, y in pieces:
            call(x, y).backward()
        optimizer.step()


# -- DDP -----------------------------------------------------------------------------------------


def attached_run(rank: int, wrap: str, attached: str, pieces: int, options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    model = Net("find_unused_parameters" in options)
    optimizer = WRAPS[wrap](sgd(model))
    parallel = DistributedDataParallel(model, **options)
    optimizer.attach(parallel if attached == "wrapper" else model)
    plainly(parallel, optimizer, batches(rank, pieces))
    return weights_of(model)


def by_hand(wrap: str, pieces: int, unused: bool) -> list[Tensor]:
    """Each rank's replica climbs on its own share; the gradients are averaged."""
    torch.manual_seed(0)
    replicas = [Net(unused)]
    replicas += [copy.deepcopy(replicas[0]) for _ in range(RANKS - 1)]
    optimizers = [WRAPS[wrap](sgd(replica)) for replica in replicas]
    for step in range(STEPS):
        gradients: list[list[Tensor]] = []
        for rank, (model, optimizer) in enumerate(zip(replicas, optimizers, strict=True)):
            total = [torch.zeros_like(param) for param in model.parameters()]
            for x, y in batches(rank, pieces)[step]:

                def backward(model=model, x=x, y=y):
                    model.zero_grad()
                    model(x, y).backward()

                backward()
                with optimizer.perturb():
                    for _ in range(getattr(optimizer, "steps", 1) - 1):
                        backward()
                        optimizer.ascend()
                    backward()
                for tensor, param in zip(total, model.parameters(), strict=True):
                    tensor += 0 if param.grad is None else param.grad
            gradients.append(total)
        for model, optimizer in zip(replicas, optimizers, strict=True):
            for param, *parts in zip(model.parameters(), *gradients, strict=True):
                param.grad = sum(parts) / RANKS
            optimizer.step()
    return weights_of(replicas[0])


@pytest.mark.parametrize("attached", first_fast(["wrapper", "inner"]))
@pytest.mark.parametrize(
    ("wrap", "pieces", "options"),
    [
        ("awp", 1, {}),
        ("awp", 2, {}),
        ("update", 1, {}),
        ("rwp", 1, {}),
        ("awp", 1, {"find_unused_parameters": True}),
        ("awp", 1, {"static_graph": True}),
        ("rwp", 1, {"static_graph": True}),
        ("awp", 1, {"gradient_as_bucket_view": True}),
    ],
)
def test_ranks_climb_on_their_shares_and_stay_equal(two_ranks, wrap, pieces, options, attached):
    runs = two_ranks.run(attached_run, wrap, attached, pieces, options)
    assert same_bits(runs[0], runs[1])
    expected = by_hand(wrap, pieces, "find_unused_parameters" in options)
    torch.testing.assert_close(runs[0], expected, rtol=1e-4, atol=1e-5)


# -- torch.compile -------------------------------------------------------------------------------


@pytest.fixture
def _compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def attach_then_compile(model: nn.Module, optimizer: Any) -> Any:
    optimizer.attach(model)
    return torch.compile(model, backend="aot_eager")


def compile_then_attach_it(model: nn.Module, optimizer: Any) -> Any:
    compiled = torch.compile(model, backend="aot_eager")
    optimizer.attach(compiled)
    return compiled


def compile_then_attach_the_inner(model: nn.Module, optimizer: Any) -> Any:
    compiled = torch.compile(model, backend="aot_eager")
    optimizer.attach(model)
    return compiled


def attach_then_compile_in_place(model: nn.Module, optimizer: Any) -> Any:
    optimizer.attach(model)
    model.compile(backend="aot_eager")
    return model


def compile_in_place_then_attach(model: nn.Module, optimizer: Any) -> Any:
    model.compile(backend="aot_eager")
    optimizer.attach(model)
    return model


@pytest.mark.parametrize("wrap", first_fast(["awp", "rwp"]))
@pytest.mark.parametrize(
    "order",
    [
        attach_then_compile,
        compile_then_attach_it,
        compile_then_attach_the_inner,
        attach_then_compile_in_place,
        compile_in_place_then_attach,
    ],
)
@pytest.mark.usefixtures("_compiler")
def test_a_compiled_module_trains_like_the_eager_one_in_each_order(order, wrap):
    model = Net()
    twin = copy.deepcopy(model)
    optimizer, eager = WRAPS[wrap](sgd(model)), WRAPS[wrap](sgd(twin))
    eager.attach(twin)
    plainly(order(model, optimizer), optimizer, batches(0, 2))
    plainly(twin, eager, batches(0, 2))
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.usefixtures("_compiler")
def test_a_module_compiled_and_called_before_it_is_attached_is_never_silent(in_place):
    model = Net()
    compiled: Any = torch.compile(model, backend="aot_eager")
    if in_place:
        model.compile(backend="aot_eager")
        compiled = model
    ((x, y),) = batches(0)[0]
    compiled(x, y).backward()
    optimizer = WRAPS["rwp"](sgd(model))
    optimizer.attach(model)
    optimizer.zero_grad()
    loss = compiled(x, y)
    perturbed = optimizer.current_pass is not None
    loss.backward()
    if perturbed:
        optimizer.step()
    else:
        with pytest.warns(UserWarning, match=r"compiled before attach"):
            optimizer.step()
