"""The loss along a direction and over a plane."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_models import (
    Residual,
    TiedTransformer,
    image_loss,
    loss_moved,
    noise,
    own_loss,
    quadratic,
    token_loss,
)
from reference import bits, same_bits
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_awp.landscape import (
    filter_normalized_direction,
    loss_curve,
    loss_surface,
    sharpness,
)

NETWORKS = [(Residual, image_loss), (TiedTransformer, token_loss)]


def flat(direction):
    return torch.cat([vector.flatten() for vector in direction.values()])


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, -1e3])
def test_the_curve_of_a_quadratic_is_its_parabola(offset):
    model = quadratic(offset)
    direction = filter_normalized_direction(model)
    d, h, way = flat(direction), model.curvature, model.flat().detach() - model.minimum
    alphas = torch.linspace(-2, 3, 12, dtype=torch.float64)
    expected = way @ h @ way / 2 + alphas * (d @ h @ way) + alphas**2 * (d @ h @ d) / 2 + offset
    torch.testing.assert_close(loss_curve(model, own_loss, direction, alphas), expected)


def test_the_surface_of_a_quadratic_is_its_paraboloid():
    model = quadratic()
    first = filter_normalized_direction(model)
    second = filter_normalized_direction(model, orthogonal_to=first)
    alphas, betas = [-1.0, 0.0, 1.5], [-2.0, -0.25, 0.0, 3.0]
    expected = torch.empty(3, 4, dtype=torch.float64)
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            way = model.flat().detach() + alpha * flat(first) + beta * flat(second) - model.minimum
            expected[i, j] = way @ model.curvature @ way / 2
    surface = loss_surface(model, own_loss, (first, second), alphas, betas)
    torch.testing.assert_close(surface, expected)


@given(alphas=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_any_positions_give_the_loss_there(alphas, seed):
    torch.manual_seed(seed)
    model = quadratic()
    direction = noise(model, seed)
    expected = [loss_moved(model, own_loss, direction, alpha) for alpha in alphas]
    curve = loss_curve(model, own_loss, direction, alphas)
    torch.testing.assert_close(curve, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "loss_fn"), NETWORKS)
def test_the_curve_of_a_network_is_its_loss_by_functions(build, loss_fn, training):
    model = build().train(training)
    direction = noise(model)
    expected = [loss_moved(model, loss_fn, direction, alpha) for alpha in (-1.0, 0.3, 2.0)]
    curve = loss_curve(model, loss_fn, direction, [-1.0, 0.3, 2.0])
    torch.testing.assert_close(curve, torch.stack(expected), rtol=1e-10, atol=0)
    assert curve[0] != curve[1]


def test_a_surface_contains_both_curves():
    model, axis = Residual(), [-1.0, 0.0, 0.4]
    first, second = noise(model, 0), noise(model, 1)
    surface = loss_surface(model, image_loss, (first, second), axis, axis)
    assert torch.equal(surface[:, 1], loss_curve(model, image_loss, first, axis))
    assert torch.equal(surface[1, :], loss_curve(model, image_loss, second, axis))


def test_the_directions_of_a_surface_may_move_different_tensors():
    model = Residual()
    first, second = noise(model, 0), noise(model, 1)
    head = {name: vector for name, vector in first.items() if name.startswith("head")}
    rest = {name: vector for name, vector in second.items() if not name.startswith("head")}
    surface = loss_surface(model, image_loss, (head, rest), [0.5], [2.0])
    together = {n: 0.5 * v for n, v in head.items()} | {n: 2.0 * v for n, v in rest.items()}
    torch.testing.assert_close(surface[0, 0], loss_moved(model, image_loss, together))


def test_tied_weights_move_once():
    model = TiedTransformer()
    embedding, direction = model.embedding.weight.detach().clone(), noise(model)
    visited = []

    def loss_fn(model):
        visited.append(model.head.weight.clone())
        return token_loss(model)

    loss_curve(model, loss_fn, direction, [2.0])
    torch.testing.assert_close(visited[0], embedding + 2.0 * direction["embedding.weight"])


# -- the center, and every point from it ---------------------------------------------------------


@pytest.mark.parametrize("make", [torch.linspace, np.linspace])
@pytest.mark.parametrize("radius", [1, 0.3, 1e-3])
def test_an_odd_grid_reproduces_the_clean_loss_exactly(make, radius):
    model = quadratic()
    direction, clean = noise(model), model()
    for points in [3, 7, 21, 51, 99]:
        assert loss_curve(model, own_loss, direction, make(-radius, radius, points))[
            points // 2
        ].equal(clean)


def test_a_grid_of_one_sign_is_taken_as_it_is():
    model = quadratic()
    alphas = torch.tensor([0.0, 1e-9, 1.0], dtype=torch.float64)
    model.offset, direction = -model().item(), {"matrix": 1e6 * torch.ones(2, 2).double()}
    curve = loss_curve(model, own_loss, direction, alphas)
    assert curve[1] != curve[0]


@pytest.mark.parametrize("training", [True, False])
def test_the_center_is_the_clean_loss_of_the_same_mode_and_random_state(training):
    model = Residual(dropout=0.5).train(training)
    curve = loss_curve(model, image_loss, noise(model), torch.linspace(-1, 1, 5))
    assert curve[2].equal(image_loss(copy.deepcopy(model)).detach())


def test_the_center_keeps_the_sign_of_zero():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 0.0]]))
    before, visited = bits(model.weight), []

    def loss_fn(model):
        visited.append(bits(model.weight))
        return 0.0

    direction = filter_normalized_direction(model)
    loss_surface(model, loss_fn, (direction, direction), [0.0], [0.0])
    assert visited == [before]


def test_points_do_not_depend_on_each_other():
    model = Residual(dropout=0.5)  # in training: statistics move, dropout draws

    def loss_fn(model):
        statistics = model.stem[1].running_mean.sum() + model.stem[1].num_batches_tracked
        return image_loss(model) + statistics

    direction, alphas = noise(model), torch.linspace(-1, 1, 5)
    together = loss_curve(model, loss_fn, direction, alphas)
    backwards = loss_curve(model, loss_fn, direction, alphas.flip(0)).flip(0)
    alone = torch.cat([loss_curve(model, loss_fn, direction, [a]) for a in alphas.tolist()])
    assert same_bits([together, together], [backwards, alone])


def test_a_flag_set_by_the_loss_reaches_no_other_point():
    model = Residual()
    flags = []

    def loss_fn(model):
        flags.extend(module.training for module in model.modules())
        flags.extend(param.requires_grad for param in model.parameters())
        model.eval().requires_grad_(False)
        return image_loss(model)

    loss_curve(model, loss_fn, noise(model), [-1.0, 0.0, 1.0])
    assert all(flags)


# -- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_rounded_once(dtype):
    model = nn.Linear(64, 64).to(dtype)
    weight = model.weight.detach().double()
    first, second = (filter_normalized_direction(model) for _ in range(2))
    visited = []

    def loss_fn(model):
        visited.append(model.weight.clone())
        return model.weight.float().sum()

    loss_surface(model, loss_fn, (first, second), [0.3], [0.7])
    exact = weight + 0.3 * first["weight"].double() + 0.7 * second["weight"].double()
    assert visited[0].dtype == dtype
    assert (visited[0] != exact.to(dtype)).double().mean() < 0.005
    loss_surface(model, loss_fn, ({"bias": torch.ones(64)}, second), [0.3], [0.7])
    exact = weight + 0.7 * second["weight"].double()
    assert (visited[1] != exact.to(dtype)).double().mean() < 0.005


def test_losses_keep_their_type_and_python_floats_are_not_rounded():
    model = nn.Linear(2, 2)
    direction = noise(model)
    assert loss_curve(model, lambda _: 0.1, direction, [0.0]).tolist() == [0.1]
    assert loss_curve(model, lambda _: np.float64(0.1), direction, [0.0]).tolist() == [0.1]
    assert loss_curve(model, lambda m: m.weight.sum(), direction, [0.0]).dtype == torch.float32
    assert loss_curve(model, lambda m: m.weight.sum().view(1, 1), direction, [0.0]).shape == (1,)


def test_a_loss_that_lives_in_the_model_is_copied():
    model = quadratic()
    model.register_buffer("last", torch.zeros((), dtype=torch.float64))

    def loss_fn(model):
        return model.last.copy_(model())

    curve = loss_curve(model, loss_fn, noise(model), [0.0, 1.0])
    assert torch.equal(curve, loss_curve(model, own_loss, noise(model), [0.0, 1.0]))


def test_a_loss_may_be_negative_infinite_or_nan():
    losses = iter([-5.0, math.inf, math.nan])
    curve = loss_curve(nn.Linear(1, 1), lambda _: next(losses), {}, [0.0, 1.0, 2.0])
    assert curve.tolist()[:2] == [-5.0, math.inf]
    assert curve[2].isnan()


def test_weights_cached_by_autocast_are_not_used_again():
    model = nn.Linear(4, 4)
    direction, inputs = noise(model), torch.randn(3, 4)

    def loss_fn(model):
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs).float().square().sum()

    expected = loss_curve(model, loss_fn, direction, [-1.0, 0.0, 1.0])
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        model(inputs)
        inside = loss_curve(model, lambda m: with_grad(loss_fn, m), direction, [-1.0, 0.0, 1.0])
    assert torch.equal(inside, expected)


def with_grad(loss_fn, model):
    with torch.enable_grad():  # autocast caches only weights that are part of a graph
        return loss_fn(model)


# -- cost ----------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """The names of all operations that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket._qualified_op_name)
        return function(*args, **(kwargs or {}))


def operations_of(depth, points):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(depth)])
    first, second, values = noise(model, 0), noise(model, 1), [0.1] * points
    with Operations() as operations:
        loss_surface(model, lambda _: 0.0, (first, second), values, [1.0])
    return operations.names


def test_the_operations_of_a_point_do_not_depend_on_the_number_of_tensors():
    costs = [len(operations_of(depth, 9)) - len(operations_of(depth, 4)) for depth in (1, 12)]
    assert costs[0] == costs[1]


def test_nothing_waits_for_an_accelerator():
    # Tensors on meta have no values: whoever asks for one fails.
    model = Residual().to("meta")
    first = filter_normalized_direction(model)
    second = filter_normalized_direction(model, orthogonal_to=first)
    assert all(vector.is_meta for vector in second.values())
    assert loss_curve(model, lambda _: 0.5, first, [0.0, 1.0]).tolist() == [0.5, 0.5]
    assert loss_surface(model, lambda _: 0.5, (first, second), [1.0], [2.0]).tolist() == [[0.5]]
    assert sharpness(model, lambda _: 0.5, 0.1, mode="average") == 0.0


def test_the_loss_runs_without_a_graph():
    model, modes = nn.Linear(2, 2), []

    def loss_fn(model):
        modes.append(torch.is_grad_enabled())
        return model.weight.sum()

    with torch.enable_grad():
        curve = loss_curve(model, loss_fn, noise(model), [0.0, 1.0])
    assert modes == [False, False]
    assert not curve.requires_grad


# -- on the way to another checkpoint -----------------------------------------------------------


def test_batch_statistics_can_be_recalibrated_at_every_point():
    model, end = Residual(), Residual()
    batches = [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(3)]

    def loss_fn(model):
        update_bn(batches, model)
        return image_loss(model.eval())

    params = dict(end.named_parameters())
    direction = {name: params[name] - param for name, param in model.named_parameters()}
    curve = loss_curve(model, loss_fn, direction, [0.0, 0.5, 1.0])
    for alpha, found in zip([0.0, 0.5, 1.0], curve, strict=True):
        mixed = copy.deepcopy(model)
        with torch.no_grad():
            for param, last in zip(mixed.parameters(), end.parameters(), strict=True):
                param.lerp_(last, alpha)
        torch.testing.assert_close(found, loss_fn(mixed).detach())


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alphas", "found"),
    [([], r"\[\]"), ([[0.0]], r"\[\[0.0\]\]"), ([math.nan], "nan"), ([math.inf], "inf")],
)
def test_positions_must_be_finite_numbers_in_one_dimension(alphas, found):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=f"alphas must be finite .*got .*{found}"):
        loss_curve(model, lambda _: 0.0, {}, alphas)
    with pytest.raises(ValueError, match=f"betas must be finite .*got .*{found}"):
        loss_surface(model, lambda _: 0.0, ({}, {}), [0.0], alphas)


@pytest.mark.parametrize("loss", [torch.ones(3), "low", None])
def test_a_loss_must_be_a_scalar(loss):
    with pytest.raises(ValueError, match=r"loss_fn\(model\) must be a scalar, got "):
        loss_curve(nn.Linear(2, 2), lambda _: loss, {}, [0.0])


def test_a_direction_must_fit_the_model():
    model = nn.Linear(2, 2)
    curve = partial(loss_curve, model, lambda _: 0.0)
    with pytest.raises(
        ValueError, match=r"direction has 'nose', which is not in model\.named_parameters"
    ):
        curve({"nose": torch.ones(2)}, [0.0])
    with pytest.raises(ValueError, match=r"direction\['bias'\] .* \(2,\), got \(3,\)"):
        curve({"bias": torch.ones(3)}, [0.0])
    with pytest.raises(ValueError, match=r"directions\[1\] has 'nose'"):
        loss_surface(model, lambda _: 0.0, ({}, {"nose": torch.ones(2)}), [0.0], [0.0])
