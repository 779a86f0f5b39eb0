"""The loss landscape: directions, curves, surfaces, interpolation; and nothing left behind."""

import random
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_models import (
    IMAGES,
    LABELS,
    Quadratic,
    Residual,
    TiedTransformer,
    image_loss,
    loss_moved,
    token_loss,
)
from reference import bits, same_bits
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_awp import landscape
from torch_awp.landscape import (
    cosine,
    filter_normalized_direction,
    interpolation_curve,
    loss_curve,
    loss_surface,
    sharpness,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def filters(tensor):
    return list(tensor.double()) if tensor.ndim > 1 else [tensor.double()]


def every_tensor(name, param):
    return True


def quadratic(offset=0.0):
    root = torch.randn(8, 8, dtype=torch.float64)
    return Quadratic(root @ root.T, torch.randn(8, dtype=torch.float64), offset)


def call(model):
    return model()


# -- directions ----------------------------------------------------------------------------------

MODELS = {
    "residual": Residual,
    "transformer": TiedTransformer,
    "embedding": lambda: nn.Embedding(7, 5, padding_idx=0),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "grouped": lambda: nn.Conv1d(4, 8, 3, groups=4),
    "float64": lambda: nn.Linear(30, 20).double(),
    "bfloat16": lambda: nn.Linear(30, 20).bfloat16(),
    "float16": lambda: nn.Linear(30, 20).half(),
    "complex": lambda: nn.Linear(30, 20, dtype=torch.complex64),
}


@pytest.mark.parametrize("select", [None, every_tensor])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_every_filter_of_a_direction_is_as_long_as_the_weights(build, select):
    model = build()
    direction = filter_normalized_direction(model, select=select)
    assert direction.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert direction[name].shape == weight.shape
        assert direction[name].device == weight.device
        if weight.ndim == 1 and select is None:
            assert not direction[name].any()
            continue
        to_wide = torch.complex128 if weight.is_complex() else torch.float64
        pairs = zip(filters(direction[name].to(to_wide)), filters(weight.to(to_wide)), strict=True)
        for filter_, target in pairs:
            assert filter_.norm().item() == pytest.approx(target.norm().item(), rel=1e-6)


def test_resnet18_has_normalised_filters():
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18()
    for name, vector in filter_normalized_direction(model).items():
        weight = model.get_parameter(name)
        if weight.ndim == 1:
            assert not vector.any()
        else:
            lengths, expected = (t.double().flatten(1).norm(dim=1) for t in (vector, weight))
            torch.testing.assert_close(lengths, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("build", [Residual, TiedTransformer])
def test_a_direction_is_gaussian_noise_rescaled_filter_by_filter(build):
    model, generator = build(), seeded(3)
    direction = filter_normalized_direction(model, seeded(3))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator)
            for drawn, target, found in zip(noise, weight, direction[name], strict=True):
                torch.testing.assert_close(found, drawn / drawn.norm() * target.norm())


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=4),
    exponents=st.lists(st.integers(-30, 30), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_filters_of_any_shape_and_size_are_normalised(shape, exponents, dtype):
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape, dtype=dtype))
    with torch.no_grad():
        for filter_, exponent in zip(model.weight if shape else [], exponents, strict=False):
            filter_.mul_(10.0**exponent)
    direction = filter_normalized_direction(model, select=every_tensor)["weight"]
    for found, target in zip(filters(direction), filters(model.weight.detach()), strict=True):
        assert found.norm().item() == pytest.approx(target.norm().item(), rel=1e-6)


def test_filters_of_zeros_get_zeros():
    model = Residual()  # its head has a bias of zeros
    with torch.no_grad():
        model.head.weight[2] = 0
    direction = filter_normalized_direction(model, select=every_tensor)
    assert not direction["head.bias"].any()
    assert not direction["head.weight"][2].any()
    assert all(vector.isfinite().all() for vector in direction.values())


def test_select_chooses_the_tensors_that_get_a_direction():
    model = Residual()
    direction = filter_normalized_direction(model, select=lambda name, _: name.endswith("bias"))
    moving = {name for name, vector in direction.items() if vector.any()}
    assert moving == {"stem.1.bias", "block.1.bias", "block.4.bias"} - {
        name for name, p in model.named_parameters() if not p.any()
    }


def test_frozen_weights_have_a_direction_and_integers_have_none():
    model = nn.Linear(3, 2).requires_grad_(False)
    model.codes = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    direction = filter_normalized_direction(model)
    assert direction.keys() == {"weight", "bias"}
    assert direction["weight"].all()


def test_tied_weights_have_one_direction():
    names = filter_normalized_direction(TiedTransformer()).keys()
    assert "embedding.weight" in names
    assert "head.weight" not in names


def test_a_generator_makes_directions_reproducible_and_leaves_the_global_one_alone():
    model, state = Residual(), torch.get_rng_state()
    one, again, other = (filter_normalized_direction(model, seeded(s)) for s in (1, 1, 2))
    assert same_bits(list(one.values()), list(again.values()))
    assert not same_bits(list(one.values()), list(other.values()))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_one_is_drawn_from():
    model = nn.Linear(3, 2)
    torch.manual_seed(5)
    first, second = filter_normalized_direction(model), filter_normalized_direction(model)
    torch.manual_seed(5)
    assert same_bits([filter_normalized_direction(model)["weight"]], [first["weight"]])
    assert not torch.equal(first["weight"], second["weight"])


@pytest.mark.parametrize("select", [None, every_tensor])
def test_a_second_direction_is_orthogonal_and_still_normalised(select):
    model = Residual()
    with torch.no_grad():
        model.head.weight.mul_(torch.logspace(-2, 3, 5)[:, None])  # filters of very unlike lengths
    first = filter_normalized_direction(model, seeded(0), select=select)
    free = filter_normalized_direction(model, seeded(1), select=select)
    second = filter_normalized_direction(model, seeded(1), select=select, orthogonal_to=first)
    assert abs(cosine(first, free)) > 1e-2
    assert abs(cosine(first, second)) < 1e-2 * abs(cosine(first, free))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            lengths, expected = (t.double().flatten(1).norm(dim=1) for t in (second[name], weight))
            torch.testing.assert_close(lengths, expected, rtol=1e-6, atol=0)
        elif select is None:
            assert not second[name].any()


def test_orthogonal_to_a_direction_of_other_tensors_changes_nothing():
    model = Residual()
    biases = filter_normalized_direction(model, select=lambda _, p: p.ndim == 1)
    alone, beside = (
        filter_normalized_direction(model, seeded(1), orthogonal_to=other)
        for other in (None, biases)
    )
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_cosine_is_that_of_the_concatenated_tensors():
    first, second = (filter_normalized_direction(Residual()) for _ in range(2))
    flat = [torch.cat([v.flatten().double() for v in d.values()]) for d in (first, second)]
    expected = torch.nn.functional.cosine_similarity(*flat, dim=0).item()
    assert cosine(first, second) == pytest.approx(expected, rel=1e-6)
    assert cosine(first, first) == pytest.approx(1.0)
    assert cosine({"a": torch.ones(2)}, {"b": torch.ones(2)}) == 0.0


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, -1e3])
def test_the_curve_of_a_quadratic_is_its_parabola(offset):
    model = quadratic(offset)
    direction = filter_normalized_direction(model, seeded())
    d = torch.cat([vector.flatten() for vector in direction.values()])
    way, h = model.weights().detach() - model.minimum, model.curvature
    alphas = torch.linspace(-2, 3, 12, dtype=torch.float64)
    expected = model().item() + alphas * (d @ h @ way) + alphas**2 * (d @ h @ d) / 2
    torch.testing.assert_close(loss_curve(model, call, direction, alphas), expected)


def test_the_surface_of_a_quadratic_is_its_paraboloid():
    model = quadratic()
    first = filter_normalized_direction(model, seeded(0))
    second = filter_normalized_direction(model, seeded(1), orthogonal_to=first)
    d, e = (torch.cat([vector.flatten() for vector in v.values()]) for v in (first, second))
    alphas, betas = torch.linspace(-1, 1, 3), torch.linspace(-2, 1, 5)
    expected = torch.empty(3, 5, dtype=torch.float64)
    for i, alpha in enumerate([-1.0, 0.0, 1.0]):
        for j, beta in enumerate([-2.0, -1.25, -0.5, 0.25, 1.0]):
            way = model.weights().detach() + alpha * d + beta * e - model.minimum
            expected[i, j] = way @ model.curvature @ way / 2
    torch.testing.assert_close(loss_surface(model, call, (first, second), alphas, betas), expected)


@given(alphas=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_any_positions_in_any_order_give_the_parabola(alphas, seed):
    torch.manual_seed(seed)
    model = quadratic()
    direction = filter_normalized_direction(model)
    expected = [
        loss_moved(model, lambda moved: moved(), {n: a * d for n, d in direction.items()})
        for a in alphas
    ]
    torch.testing.assert_close(
        loss_curve(model, call, direction, alphas), torch.stack(expected), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("build", "loss_fn"), [(Residual, image_loss), (TiedTransformer, token_loss)]
)
def test_a_network_matches_its_functional_evaluation(build, loss_fn, training):
    model = build().double().train(training)
    direction = filter_normalized_direction(model, seeded())
    alphas = [-1.0, -0.25, 0.0, 0.5]

    def functional_loss(moved):
        if build is TiedTransformer:
            return nn.functional.cross_entropy(
                moved(*token_inputs()).flatten(0, 1), token_inputs()[0].flatten()
            )
        return nn.functional.cross_entropy(moved(IMAGES.double()), LABELS)

    expected = [
        loss_moved(model, functional_loss, {n: a * d for n, d in direction.items()}) for a in alphas
    ]
    torch.testing.assert_close(
        loss_curve(model, loss_fn, direction, alphas), torch.stack(expected), rtol=1e-12, atol=0
    )


def token_inputs():
    from landscape_models import TOKENS

    return (TOKENS,)
