"""bitsandbytes: a base that keeps its state in 8 bits, and frozen weights of 4 bits below LoRA."""

from typing import Any

import bitsandbytes
import pytest
import torch
from documented import run_recipe
from peft import LoraConfig, get_peft_model
from reference import same_bits
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

STEPS = 3
WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}


class Net(nn.Module):
    """Tensors of 8,192 numbers, since smaller ones keep their state in 32 bits."""

    def __init__(self, linear: Any = nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = linear(64, 128), linear(128, 64)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.second(self.first(x).tanh()), y)


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 64), torch.randn(8, 64)) for _ in range(STEPS)]


def plainly(model: nn.Module, optimizer: Any, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()


def in_passes(model: nn.Module, optimizer: Any, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        for _ in optimizer.passes():
            optimizer.zero_grad()
            model(x, y).backward()
        optimizer.step()


def built(wrap: str, cls: str) -> tuple[nn.Module, Any]:
    model = Net()
    return model, WRAPS[wrap](getattr(bitsandbytes.optim, cls)(model.parameters(), lr=1e-3))


def test_the_recipe_equals_a_loop_of_passes():
    model = Net()
    run_recipe("bitsandbytes", model=model, loader=batches())
    twin = Net()
    base = bitsandbytes.optim.AdamW8bit(twin.parameters(), lr=1e-3)
    in_passes(twin, AdversarialWeightPerturbation(base, gamma=1e-2), batches())
    assert same_bits(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("cls", ["AdamW8bit", "Lion8bit"])
def test_a_base_of_8_bits_attached_equals_the_loop_of_passes(cls, wrap):
    model, optimizer = built(wrap, cls)
    optimizer.attach(model)
    twin, by_passes = built(wrap, cls)
    plainly(model, optimizer, batches())
    in_passes(twin, by_passes, batches())
    assert optimizer.state[model.first.weight]["state1"].dtype == torch.uint8
    assert same_bits(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("wrap", WRAPS)
def test_its_checkpoint_resumes_to_the_same_bits(wrap, tmp_path):
    model, optimizer = built(wrap, "AdamW8bit")
    in_passes(model, optimizer, batches())
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "last.pt")
    twin, resumed = built(wrap, "AdamW8bit")
    for part, state in zip((twin, resumed), torch.load(tmp_path / "last.pt"), strict=True):
        part.load_state_dict(state)
    for each, stepper in ((model, optimizer), (twin, resumed)):
        in_passes(each, stepper, batches())
    assert same_bits(list(model.parameters()), list(twin.parameters()))


def test_below_lora_weights_of_4_bits_stay_and_the_factors_move():
    torch.manual_seed(3)
    model = Net(bitsandbytes.nn.LinearNF4).to("cpu")  # which quantises
    model = get_peft_model(model, LoraConfig(target_modules=["first", "second"]))
    optimizer = WRAPS["awp"](torch.optim.AdamW(model.parameters(), lr=1e-3))
    optimizer.attach(model)
    home = {name: param.detach().clone() for name, param in model.named_parameters()}
    assert home["base_model.model.first.base_layer.weight"].dtype == torch.uint8
    plainly(model, optimizer, batches()[:2])

    trained = {name: param.detach().clone() for name, param in model.named_parameters()}
    factors = {name for name in trained if "lora_" in name}
    assert {name for name in trained if not trained[name].equal(home[name])} == factors
    loss = model(*batches()[2])
    moved = {name for name, param in model.named_parameters() if not param.equal(trained[name])}
    assert moved == factors
    loss.backward()
    assert same_bits([*trained.values()], [param.detach() for param in model.parameters()])
