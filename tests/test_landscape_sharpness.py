"""Sharpness: the loss rise in the layer-relative ball, against closed forms and the optimizers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_models import Residual, TiedTransformer, image_loss, own_loss, quadratic, token_loss
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation
from torch_awp.landscape import sharpness


class Slopes(nn.Module):
    """``L(w)`` is the sum of ``slope * w``, whose rise in any ball is known."""

    def __init__(self, *shapes, dtype=torch.float64):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(shape, dtype=dtype) for shape in shapes])
        self.slopes = [torch.randn(shape, dtype=dtype) for shape in shapes]

    def forward(self):
        return sum((w * g).sum() for w, g in zip(self.weights, self.slopes, strict=True))

    def rise(self, size):
        """The sum over the tensors with more than one dimension."""
        pairs = zip(self.weights, self.slopes, strict=True)
        return sum(size(w.detach(), g) for w, g in pairs if w.ndim > 1)


class Bowl(nn.Module):
    """``L(w) = scale * ||w||^2 / 2``."""

    def __init__(self, scale=1.0, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5, dtype=dtype))
        self.scale = scale

    def forward(self):
        return self.scale * self.weight.square().sum() / 2

    def norm(self):
        return self.weight.detach().norm().item()


# -- the worst case ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("gamma", [1e-4, 0.1, 2.0])
def test_a_bowl_rises_along_its_radius(gamma, steps):
    model = Bowl(scale=3.0)
    expected = 3.0 * model.norm() ** 2 * ((1 + gamma) ** 2 - 1) / 2
    assert sharpness(model, own_loss, gamma, steps=steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_slope_rises_by_the_sum_over_layers_of_radius_times_gradient(steps):
    model = Slopes((3, 4), (5,), (2, 2, 3))
    expected = model.rise(lambda w, g: 0.1 * w.norm().item() * g.norm().item())
    assert sharpness(model, own_loss, 0.1, steps=steps) == pytest.approx(expected)


def test_in_the_box_a_slope_rises_to_the_corner():
    model = Slopes((3, 4), (5,), (2, 2, 3))
    expected = model.rise(lambda w, g: 0.1 * (w * g).abs().sum().item())
    found = sharpness(model, own_loss, 0.1, step_size=1e3, constraint="element")
    assert found == pytest.approx(expected)


def highest_in_ball(h, gradient, radius):
    """The maximum of ``g'v + v'Hv / 2`` on ``||v|| <= r``, by bisection on the multiplier."""
    values, vectors = torch.linalg.eigh(h)
    coefficients = vectors.T @ gradient
    low, high = values.max().item(), values.max().item() + gradient.norm().item() / radius
    for _ in range(200):
        middle = (low + high) / 2
        too_far = (coefficients / (middle - values)).norm() > radius
        low, high = (middle, high) if too_far else (low, middle)
    v = vectors @ (coefficients / (high - values))
    return (gradient @ v + v @ h @ v / 2).item()


def test_the_ascent_climbs_a_quadratic_to_the_highest_point_of_the_ball():
    model = quadratic()
    model.column.requires_grad_(False)
    start = (model.flat() - model.minimum).detach()
    highest = highest_in_ball(
        model.curvature[:4, :4],
        (model.curvature @ start)[:4],
        0.5 * model.matrix.detach().norm().item(),
    )
    only_matrix = {"select": lambda name, _: name == "matrix"}
    found = sharpness(model, own_loss, 0.5, steps=300, step_size=0.1, **only_matrix)
    assert found == pytest.approx(highest, rel=1e-6)
    assert sharpness(model, own_loss, 0.5, **only_matrix) == pytest.approx(highest, rel=0.05)


@given(gamma=st.floats(1e-3, 1.0), steps=st.integers(1, 12), seed=st.integers(0, 50))
@settings(max_examples=25)
def test_no_ascent_is_higher_than_the_highest_point_or_lower_than_the_center(gamma, steps, seed):
    torch.manual_seed(seed)
    model = quadratic()
    gradient = model.curvature @ (model.flat() - model.minimum).detach()
    radius = gamma * model.flat().detach().norm().item()  # a ball around both layers' balls
    found = sharpness(model, own_loss, gamma, steps=steps)
    assert 0 <= found <= highest_in_ball(model.curvature, gradient, radius) * (1 + 1e-9)


@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize(
    ("build", "loss_fn"), [(Residual, image_loss), (TiedTransformer, token_loss)]
)
def test_one_step_finds_the_loss_that_the_optimizer_trains_on(build, loss_fn, constraint):
    model = build()
    found = sharpness(model, loss_fn, 0.05, steps=1, step_size=0.05, constraint=constraint)
    twin = copy.deepcopy(model)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(twin.parameters(), lr=0.1), 0.05, constraint=constraint
    )
    clean = loss_fn(twin)
    clean.backward()
    with optimizer.perturb():
        assert found == pytest.approx((loss_fn(twin) - clean).item(), rel=1e-9)


def test_the_highest_loss_on_the_way_counts_not_the_last():
    model = Bowl(scale=-1.0)  # its top is at zero; the ascent steps over it to -w / 2 and back to w
    found = sharpness(model, own_loss, 1.5, steps=2, step_size=1.5)
    assert found == pytest.approx(model.norm() ** 2 * (1 - 0.5**2) / 2)


def test_at_a_maximum_nothing_rises():
    model = quadratic(offset=-5.0)
    model.curvature, model.minimum = -model.curvature, model.flat().detach()
    assert sharpness(model, own_loss, 0.1) == 0.0
    assert sharpness(model, own_loss, 0.1, mode="average") < 0


def test_frozen_tensors_move_and_one_dimensional_ones_do_not():
    model = Slopes((3, 4), (5,)).requires_grad_(False)
    expected = model.rise(lambda w, g: 0.1 * w.norm().item() * g.norm().item())
    assert sharpness(model, own_loss, 0.1) == pytest.approx(expected)


def test_every_evaluation_of_the_ascent_has_the_same_dropout_and_statistics():
    model = Residual(dropout=0.5)

    def loss_fn(model):
        return image_loss(model) + model.stem[1].num_batches_tracked

    assert sharpness(model, loss_fn, 1e-12) == pytest.approx(0, abs=1e-9)
    assert sharpness(model, loss_fn, 1e-12, mode="average") == pytest.approx(0, abs=1e-9)


# -- the average case ----------------------------------------------------------------------------


def test_a_bowl_rises_on_average_by_the_mean_over_the_same_noise():
    model, gamma = Bowl(scale=3.0), 0.2
    generator, w, rises = torch.Generator().manual_seed(4), model.weight.detach(), []
    for _ in range(7):
        noise = torch.randn(w.shape, dtype=w.dtype, generator=generator)
        v = gamma * w.norm() * noise / noise.norm()
        rises.append(3.0 * ((w + v).square().sum() - w.square().sum()).item() / 2)
    found = sharpness(
        model,
        own_loss,
        gamma,
        mode="average",
        samples=7,
        generator=torch.Generator().manual_seed(4),
    )
    assert found == pytest.approx(sum(rises) / 7)
    assert len(set(rises)) == 7


def test_a_bowl_rises_on_average_by_half_the_squared_radius():
    model = Bowl()
    found = sharpness(model, own_loss, 1.0, mode="average", samples=2000)
    spread = model.norm() ** 2 / math.sqrt(20 * 2000)
    assert found == pytest.approx(model.norm() ** 2 / 2, abs=5 * spread)


def test_one_sample_is_the_loss_that_the_optimizer_trains_on():
    model, generators = Residual(), [torch.Generator().manual_seed(6) for _ in range(2)]
    found = sharpness(model, image_loss, 0.1, mode="average", samples=1, generator=generators[0])
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = RandomWeightPerturbation(base, 0.1, generator=generators[1])
    clean = image_loss(model)
    with optimizer.perturb():
        assert found == pytest.approx((image_loss(model) - clean).item(), rel=1e-9)


def test_without_a_generator_the_number_is_reproducible():
    model = Residual().eval()
    torch.manual_seed(1)
    first = sharpness(model, image_loss, 0.1, mode="average")
    torch.manual_seed(2)
    assert sharpness(model, image_loss, 0.1, mode="average") == first


# -- one comparable number -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["worst", "average"])
def test_layers_of_other_scale_and_the_same_function_are_as_sharp(mode):
    inputs, labels = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3
    layers = [nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)]
    model = nn.Sequential(*layers).double()

    def loss_fn(model):
        return nn.functional.cross_entropy(model(inputs), labels)

    before = sharpness(model, loss_fn, 0.1, mode=mode)
    with torch.no_grad():
        model[0].weight.mul_(64.0)
        model[2].weight.div_(64.0)
    assert sharpness(model, loss_fn, 0.1, mode=mode) == pytest.approx(before)
    assert before != 0


@given(scale=st.floats(1e-6, 1e6), mode=st.sampled_from(["worst", "average"]))
@settings(max_examples=20)
def test_a_loss_times_a_constant_rises_by_that_constant(scale, mode):
    torch.manual_seed(0)
    model = quadratic()
    once = sharpness(model, own_loss, 0.1, mode=mode)
    found = sharpness(model, lambda m: scale * m(), 0.1, mode=mode)
    assert found == pytest.approx(scale * once, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["worst", "average"])
def test_half_precision_gives_the_number_to_its_rounding(dtype, mode):
    model = Bowl(dtype=dtype)
    single = copy.deepcopy(model).float()

    def loss_fn(model):
        return model.weight.double().square().sum() / 2

    found, expected = (sharpness(m, loss_fn, 0.5, mode=mode) for m in (model, single))
    assert found == pytest.approx(expected, abs=torch.finfo(dtype).eps * single.norm() ** 2)
    assert expected > 0.05 * single.norm() ** 2


def test_gamma_zero_is_a_rise_of_zero():
    assert sharpness(Residual(), image_loss, 0.0) == 0.0
    assert sharpness(Residual(), image_loss, 0.0, mode="average") == 0.0
    # which computes a little differently with and without a graph, when not training
    assert sharpness(TiedTransformer().eval(), token_loss, 0.0) == 0.0


def test_it_can_be_measured_where_gradients_are_off():
    model = Bowl()
    expected = sharpness(model, own_loss, 0.1)
    with torch.no_grad():
        assert sharpness(model, own_loss, 0.1) == expected


@pytest.mark.parametrize("mode", ["worst", "average"])
def test_a_loss_that_is_no_number_anywhere_is_not_hidden(mode):
    calls = []

    def loss_fn(model):
        calls.append(None)
        return model() * (math.nan if len(calls) == 2 else 1.0)

    assert math.isnan(sharpness(Bowl(), loss_fn, 0.1, mode=mode))


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1.0}, "gamma must be a finite number >= 0, got -1.0"),
        ({"mode": "best"}, "mode must be 'worst' or 'average', got 'best'"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"samples": 1.5}, "samples must be an integer >= 1, got 1.5"),
        ({"step_size": 0}, "step_size must be a finite number > 0, got 0"),
        ({"mode": "average", "steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"mode": "average", "step_size": 0}, "step_size must be a finite number > 0, got 0"),
        ({"constraint": "box"}, "constraint must be 'layer' or 'element', got 'box'"),
        ({"select": lambda name, _: False}, "select=.* must pick at least one tensor"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharpness(Bowl(), own_loss, **{"gamma": 0.1, **arguments})


def test_the_worst_case_needs_a_graph():
    message = r"loss_fn\(model\) must have an autograd graph for mode='worst'"
    with pytest.raises(ValueError, match=message):
        sharpness(Bowl(), torch.no_grad()(own_loss), 0.1)
    with pytest.raises(ValueError, match=message):
        sharpness(Bowl(), lambda model: model().item(), 0.1)
    assert sharpness(Bowl(), lambda model: model().item(), 0.1, mode="average") > 0
