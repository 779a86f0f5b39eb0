"""PEFT: the factors of LoRA move, each relative to its own norm; what is frozen never does."""

import torch
from documented import loop_of_passes, run_recipe
from peft import LoraConfig, get_peft_model
from reference import same_bits
from torch import nn
from trainers.plain_loop import WRAPS, Regressor, loader


def adapted() -> nn.Module:
    torch.manual_seed(3)
    return get_peft_model(Regressor(), LoraConfig(target_modules=["net.0", "net.2"]))


def frozen(model: nn.Module) -> list[torch.Tensor]:
    return [param.clone() for param in model.parameters() if not param.requires_grad]


def test_the_recipe_equals_a_loop_by_hand():
    torch.manual_seed(3)
    model = run_recipe("PEFT", model=Regressor(), loader=loader())["model"]

    twin = adapted()
    home = frozen(twin)
    expected = loop_of_passes(twin, lambda x, y: twin(x, labels=y)["loss"], loader())
    assert same_bits(list(model.state_dict().values()), expected)
    assert same_bits(frozen(model), home)


def test_both_factors_move_from_the_second_step_on_and_nothing_else():
    model = adapted()
    optimizer = WRAPS["awp"](torch.optim.AdamW(model.parameters(), lr=0.05))
    optimizer.attach(model)
    moved = []
    for x, y in loader():
        home = {name: param.detach().clone() for name, param in model.named_parameters()}
        optimizer.zero_grad()
        loss = model(x, labels=y)["loss"]
        moved.append(
            {name for name, param in model.named_parameters() if not param.equal(home[name])}
        )
        for name in moved[-1]:
            change = (model.get_parameter(name) - home[name]).norm() / home[name].norm()
            torch.testing.assert_close(change, torch.tensor(0.1), rtol=1e-4, atol=0)
        loss.backward()
        optimizer.step()

    factors = {name for name, param in model.named_parameters() if param.requires_grad}
    assert all("lora_" in name for name in factors)
    assert moved == [set(), *[factors] * 5]
