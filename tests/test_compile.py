"""torch.compile: a compiled model sees the weights where they are, without compiling again."""

import copy
from collections.abc import Iterator

import pytest
import torch
from reference import batch, loss_of, one_step, small_net, weights_of
from tiers import first_fast
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

# torch 2.6 about its own settings.
pytestmark = pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline")

WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=2),
    "awp-update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}


def train(model: nn.Module, forward: nn.Module, optimizer, form: str) -> list[Tensor]:
    torch.manual_seed(1)
    for _ in range(4):
        data = batch()

        def closure(data=data) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(forward, data)
            loss.backward()
            return loss

        one_step(optimizer, closure, form)
    return weights_of(model)


@pytest.fixture(params=first_fast(["aot_eager", "inductor"]))
def compiler(request: pytest.FixtureRequest) -> Iterator[CompileCounterWithBackend]:
    torch.compiler.reset()
    yield CompileCounterWithBackend(request.param)
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["closure", "loop", "block"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_compiled_model_trains_like_the_eager_one(compiler, wrap, form):
    model = small_net()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=compiler)
    build = WRAPS[wrap]
    expected = train(model, model, build(torch.optim.AdamW(model.parameters(), lr=0.01)), form)
    optimizer = build(torch.optim.AdamW(compiled.parameters(), lr=0.01))
    measured = train(twin, compiled, optimizer, form)
    torch.testing.assert_close(measured, expected, rtol=1e-8, atol=1e-10)
    assert compiler.frame_count == 1


def test_a_compiled_forward_sees_moved_and_restored_weights(compiler):
    model, data = small_net(), batch()
    compiled = torch.compile(model, backend=compiler)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
    losses = []
    for place in ["home", "away", "home"]:
        loss_of(model, data).backward()
        with optimizer.perturb() if place == "away" else torch.enable_grad():
            losses.append(loss_of(compiled, data).item())
            assert losses[-1] == pytest.approx(loss_of(model, data).item(), rel=1e-12)
    assert losses[0] == losses[2] < losses[1]
