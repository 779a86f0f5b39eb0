"""Random perturbation: its distribution, reproducibility and independence."""

import copy

import pytest
import torch
from reference import batch, closure_for, loss_of, same_bits, small_net, weights_of
from scipy import stats
from torch import Tensor, nn

from torch_awp import RandomWeightPerturbation


def rwp(params, gamma: float = 0.1, seed: int | None = 0, **kwargs) -> RandomWeightPerturbation:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return RandomWeightPerturbation(
        torch.optim.SGD(params, lr=0.0), gamma, generator=generator, **kwargs
    )


def noise(optimizer: RandomWeightPerturbation, param: Tensor) -> Tensor:
    before = param.detach().clone()
    with optimizer.perturb():
        return param.detach() - before


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 2.0])
def test_its_length_is_gamma_times_the_weight(gamma):
    param = nn.Parameter(torch.randn(5, 7).double())
    v = noise(rwp([param], gamma), param)
    torch.testing.assert_close(v.norm(), gamma * param.detach().norm())


def test_its_direction_is_uniform_on_the_sphere():
    """A coordinate u of a uniform unit vector in 3-D is uniform on [-1, 1] (Archimedes)."""
    param = nn.Parameter(torch.ones(3, 1).double())
    optimizer = rwp([param])
    draws = torch.stack([noise(optimizer, param).flatten() for _ in range(1000)])
    units = draws / draws.norm(dim=1, keepdim=True)
    for coordinate in units.T:
        assert stats.kstest(coordinate.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_element_constraint_clamps_into_the_box():
    param = nn.Parameter(torch.randn(20, 20).double())
    free, boxed = rwp([param]), rwp([param], constraint="element")
    v, bound = noise(free, param), 0.1 * param.detach().abs()
    expected = torch.minimum(torch.maximum(v, -bound), bound)
    torch.testing.assert_close(noise(boxed, param), expected)


def test_tensors_move_with_and_without_gradients_but_frozen_ones_do_not():
    params = [nn.Parameter(torch.randn(3, 3)) for _ in range(3)]
    params[1].grad = torch.zeros(3, 3)
    params[2].requires_grad_(False)
    before = [p.detach().clone() for p in params]
    with rwp(params).perturb():
        moved = [not torch.equal(p, w) for p, w in zip(params, before, strict=True)]
    assert moved == [True, True, False]


def test_a_zero_weight_does_not_move():
    param = nn.Parameter(torch.zeros(3, 3))
    assert not noise(rwp([param]), param).any()


def test_a_generator_makes_it_reproducible_and_leaves_the_global_one_alone():
    param = nn.Parameter(torch.randn(4, 4))
    state = torch.get_rng_state()
    first = [noise(optimizer, param) for optimizer in [rwp([param])] for _ in range(3)]
    second = [noise(optimizer, param) for optimizer in [rwp([param])] for _ in range(3)]
    assert same_bits(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_seed_decides():
    param = nn.Parameter(torch.randn(4, 4))
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(noise(rwp([param], seed=None), param))
    assert same_bits(draws[:1], draws[1:])


def test_a_checkpoint_with_a_generator_for_a_wrapper_without_one_warns_and_is_not_saved_again():
    param = nn.Parameter(torch.randn(4, 4))
    resumed = rwp([param], seed=None)
    with pytest.warns(UserWarning, match="give it generator="):
        resumed.load_state_dict(rwp([param]).state_dict())
    assert "perturb_generator" not in resumed.state_dict()["param_groups"][0]


def test_steps_and_tensors_draw_independent_noise():
    params = [nn.Parameter(torch.ones(30, 30).double()) for _ in range(2)]
    optimizer = rwp(params)
    draws = []
    for _ in range(2):
        with optimizer.perturb():
            draws += [(p.detach() - 1).flatten() for p in params]
    correlations = torch.corrcoef(torch.stack(draws))
    off_diagonal = correlations[~torch.eye(4, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / 30  # five standard deviations of 900 samples


def test_the_step_uses_the_gradient_at_the_drawn_point():
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    optimizer = RandomWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1),
        0.1,
        generator=torch.Generator().manual_seed(0),
    )
    optimizer.step(closure_for(model, data))
    home = weights_of(twin)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in twin.parameters():
            if param.ndim > 1:
                epsilon = torch.randn(param.shape, dtype=param.dtype, generator=generator)
                param += 0.1 * param.norm() * epsilon / epsilon.norm()
    loss_of(twin, data).backward()
    for param, twin_param, weight in zip(model.parameters(), twin.parameters(), home, strict=True):
        torch.testing.assert_close(param.detach(), weight - 0.1 * twin_param.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_other_dtypes_move_by_gamma(dtype):
    param = nn.Parameter(torch.randn(40, 40, dtype=dtype))
    v = noise(rwp([param], 0.5), param)
    real, weight = (torch.view_as_real(t) if t.is_complex() else t for t in (v, param.detach()))
    torch.testing.assert_close(real.float().norm(), 0.5 * weight.float().norm(), rtol=1e-2, atol=0)
