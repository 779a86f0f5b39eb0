"""Modules with a life of their own: parametrizations, averages, dropout, batch statistics."""

import copy

import pytest
import torch
from reference import ascent, batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from torch_awp import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    freeze_running_stats,
)

PARAMETRIZATIONS = [
    parametrizations.weight_norm,
    lambda layer: parametrizations.spectral_norm(layer, n_power_iterations=5),
    parametrizations.orthogonal,
]


def awp(model: nn.Module, gamma: float = 0.1, **kwargs) -> AdversarialWeightPerturbation:
    return AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1), gamma, **kwargs
    )


def parametrized_net(parametrization) -> nn.Sequential:
    return nn.Sequential(
        parametrization(nn.Linear(5, 7).double()), nn.Tanh(), nn.Linear(7, 3).double()
    )


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_tensors_behind_a_parametrization_climb(parametrization):
    """Those are what the optimizer holds; the weight that the layer uses follows them."""
    model, data = parametrized_net(parametrization), batch()
    model.eval()  # spectral_norm's power iteration stands still
    names = [name for name, _ in model.named_parameters()]

    def gradients_at(weights):
        def loss_at(params):
            return nn.functional.mse_loss(functional_call(model, params, data[0]), data[1])

        return grad(loss_at)(dict(zip(names, weights, strict=True))).values()

    expected = ascent(list(model.parameters()), gradients_at, 0.1)
    used = model[0].weight.detach().clone()
    home = weights_of(model)
    loss_of(model, data).backward()
    with awp(model).perturb():
        torch.testing.assert_close(weights_of(model), expected)
        assert not torch.allclose(model[0].weight, used)
    assert same_bits(weights_of(model), home)
    torch.testing.assert_close(model[0].weight, used, rtol=0, atol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_parametrized_models_train(parametrization, wrapper):
    model, data, losses = parametrized_net(parametrization), batch(), []
    optimizer = wrapper(torch.optim.SGD(model.parameters(), lr=0.1), 0.01)
    for _ in range(30):
        optimizer.step(closure_for(model, data, losses))
    assert losses[-1] < 0.8 * losses[0]


def test_the_cache_of_parametrizations_must_not_span_both_passes():
    """torch keeps computed weights inside `parametrize.cached()`, wherever their tensors move."""
    model, data = parametrized_net(parametrizations.weight_norm), batch()
    loss_of(model, data).backward()
    optimizer = awp(model[0])
    with parametrize.cached():
        spanning = [loss_of(model, data).item()]
        with optimizer.perturb():
            spanning.append(loss_of(model, data).item())
    separate = []
    with optimizer.perturb(), parametrize.cached():
        separate.append(loss_of(model, data).item())
    assert spanning[0] == spanning[1] < separate[0]


@pytest.mark.parametrize("form", ["closure", "block"])
def test_an_average_of_the_weights_takes_them_at_home(form):
    model, data = small_net(), batch()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = awp(model)
    expected = None
    for _ in range(4):
        if form == "closure":
            optimizer.step(closure_for(model, data))
        else:
            closure_for(model, data)()
            with optimizer.perturb():
                closure_for(model, data)()
            optimizer.step()
        average.update_parameters(model)
        home = weights_of(model)
        expected = (
            home
            if expected is None
            else [0.9 * old + 0.1 * new for old, new in zip(expected, home, strict=True)]
        )
    torch.testing.assert_close(weights_of(average.module), expected, rtol=1e-12, atol=0)


def test_dropout_draws_a_new_mask_for_the_second_pass_unless_told_otherwise():
    model = nn.Sequential(nn.Linear(5, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    data, masks = batch(), []
    model[1].register_forward_hook(lambda layer, args, output: masks.append(output == 0))

    def closure(same_mask: bool) -> Tensor:
        if same_mask:
            torch.manual_seed(7)
        return closure_for(model, data)()

    optimizer = awp(model)
    for same_mask in (False, True):
        masks.clear()
        optimizer.step(lambda same_mask=same_mask: closure(same_mask))
        assert torch.equal(*masks) == same_mask


def bn_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()


def statistics(model: nn.Module) -> list[Tensor]:
    return [buffer.detach().clone() for buffer in model.buffers()]


@pytest.mark.parametrize("form", ["closure", "block"])
def test_frozen_in_the_second_pass_statistics_are_those_of_the_clean_one(form):
    model, data = bn_net(), batch()
    optimizer, clean = awp(model), copy.deepcopy(model)
    loss_of(clean, data)
    if form == "block":
        closure_for(model, data)()
        with optimizer.perturb(), freeze_running_stats(model):
            closure_for(model, data)()
        optimizer.step()
    else:
        passes = iter([torch.enable_grad(), freeze_running_stats(model)])

        def closure() -> Tensor:
            with next(passes):
                return closure_for(model, data)()

        optimizer.step(closure)
    assert same_bits(statistics(model), statistics(clean))


def test_without_freezing_both_passes_move_the_statistics():
    model, data = bn_net(), batch()
    awp(model).step(closure_for(model, data))
    assert model[1].num_batches_tracked == 2


def test_statistics_of_an_average_are_recomputed_at_home():
    model, data = bn_net(), batch()
    optimizer, average = awp(model), AveragedModel(model)
    for _ in range(3):
        optimizer.step(closure_for(model, data))
        average.update_parameters(model)
    update_bn([data[0]], average)
    hidden = average.module[0](data[0])
    torch.testing.assert_close(average.module[1].running_mean, hidden.mean(0).detach())
