"""ascent="previous": climb along the gradient of the last step, at the price of plain training."""

import copy

import pytest
import torch
from reference import batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import nn

from torch_awp import AdversarialWeightPerturbation


def previous(model: nn.Module, **kwargs: object) -> AdversarialWeightPerturbation:
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return AdversarialWeightPerturbation(base, 0.1, ascent="previous", **kwargs)


def test_the_first_step_is_unperturbed():
    model, data = small_net(), batch()
    before = weights_of(model)
    with previous(model).perturb():
        loss_of(model, data).backward()
        assert same_bits(weights_of(model), before)


def test_the_second_step_climbs_along_the_gradient_of_the_first():
    model, data = small_net(), batch()
    optimizer = previous(model)
    optimizer.step(closure_for(model, data))
    used, home = model[0].weight.grad.clone(), model[0].weight.detach().clone()
    optimizer.zero_grad()
    with optimizer.perturb():
        v = model[0].weight.detach() - home
    torch.testing.assert_close(v, 0.1 * home.norm() * used / used.norm())


def run(zeroing: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model, data = small_net(), batch()
    optimizer = previous(model)
    if zeroing == "hook":
        optimizer.register_step_post_hook(lambda opt, args, kwargs: opt.zero_grad())
    for _ in range(4):
        if zeroing == "before":
            optimizer.zero_grad()
        if zeroing == "before in place":
            optimizer.zero_grad(set_to_none=False)
        with optimizer.perturb():
            if zeroing == "in the block":
                model.zero_grad(set_to_none=False)
            loss_of(model, data).backward()
        optimizer.step()
        if zeroing == "after":
            optimizer.zero_grad()
        if zeroing == "after in place":
            model.zero_grad(set_to_none=False)
    return weights_of(model)


@pytest.mark.parametrize(
    "zeroing", ["before in place", "in the block", "after", "after in place", "hook"]
)
def test_it_does_not_matter_how_gradients_are_zeroed(zeroing):
    assert same_bits(run(zeroing), run("before"))


def test_closure_and_block_agree():
    torch.manual_seed(0)
    model, data = small_net(), batch()
    optimizer = previous(model)
    for _ in range(4):
        optimizer.step(closure_for(model, data))
    assert same_bits(weights_of(model), run("before"))


def test_with_an_interval_the_gradient_of_the_step_just_before_is_used():
    model, data = small_net(), batch()
    optimizer = previous(model, interval=3)
    for _ in range(3):
        optimizer.step(closure_for(model, data))
    used, home = model[2].weight.grad.clone(), model[2].weight.detach().clone()
    with optimizer.perturb():
        v = model[2].weight.detach() - home
    torch.testing.assert_close(v, 0.1 * home.norm() * used / used.norm())


def test_a_tensor_without_a_gradient_in_the_last_step_does_not_move():
    params = [nn.Parameter(torch.randn(2, 2)) for _ in range(2)]
    base = torch.optim.Adam(params)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="previous")
    for present in [(0, 1), (0,)]:
        with optimizer.perturb():
            for i, param in enumerate(params):
                param.grad = torch.randn(2, 2) if i in present else None
        optimizer.step()
    before = params[1].detach().clone()
    with optimizer.perturb():
        assert torch.equal(params[1], before)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam])
@pytest.mark.parametrize("interval", [1, 2])
def test_it_resumes_bitwise(cls, interval, tmp_path):
    data = batch(torch.float32)
    model = small_net(torch.float32)

    def build(module: nn.Module) -> AdversarialWeightPerturbation:
        base = cls(module.parameters(), lr=1e-2)
        return AdversarialWeightPerturbation(base, 0.1, ascent="previous", interval=interval)

    optimizer = build(model)
    for _ in range(3):
        optimizer.step(closure_for(model, data))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c")
    resumed = copy.deepcopy(model)
    checkpoint = torch.load(tmp_path / "c", weights_only=True)
    resumed.load_state_dict(checkpoint["model"])
    resumed.zero_grad()
    second = build(resumed)
    second.load_state_dict(checkpoint["optimizer"])
    for _ in range(3):
        optimizer.step(closure_for(model, data))
        second.step(closure_for(resumed, data))
    assert same_bits(weights_of(resumed), weights_of(model))


def test_its_checkpoint_loads_into_the_plain_base():
    model, data = small_net(), batch()
    optimizer = previous(model)
    optimizer.step(closure_for(model, data))
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain.load_state_dict(optimizer.state_dict())
    plain.step(closure_for(model, data))


def test_an_interrupted_block_keeps_the_gradient_to_climb():
    model, data = small_net(), batch()
    optimizer = previous(model)
    optimizer.step(closure_for(model, data))
    with optimizer.perturb():
        first = weights_of(model)
    with pytest.raises(KeyboardInterrupt), optimizer.perturb():
        raise KeyboardInterrupt
    with optimizer.perturb():
        assert same_bits(weights_of(model), first)


def test_a_base_that_keeps_single_values_in_its_state():
    import pytorch_optimizer

    model, data = small_net(), batch()
    base = pytorch_optimizer.MADGRAD(model.parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="previous")
    for _ in range(3):
        optimizer.step(closure_for(model, data))


def test_a_hook_that_takes_a_gradient_away_does_not_disturb_the_bases_state():
    model, data = small_net(), batch()
    base = torch.optim.Adam(model.parameters())
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="previous")

    def take_away(*_):
        model[0].weight.grad = None

    handle = optimizer.register_step_pre_hook(take_away)
    optimizer.step(closure_for(model, data))
    handle.remove()
    optimizer.step(closure_for(model, data))
    assert "exp_avg" in base.state[model[0].weight]


def test_a_wrapper_that_does_not_climb_it_does_not_keep_it():
    model, data = small_net(), batch()
    optimizer = previous(model)
    optimizer.step(closure_for(model, data))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    current = AdversarialWeightPerturbation(base, 0.1)
    current.load_state_dict(optimizer.state_dict())
    assert not any("perturb_gradient" in state for state in current.state.values())
