"""Directions as long as the weights, filter by filter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_models import Residual, TiedTransformer
from reference import same_bits
from torch import nn

from torch_awp.landscape import cosine, filter_normalized_direction


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def every_tensor(name, param):
    return True


def assert_filters_as_long_as_the_weights(vector, weight):
    wide = torch.complex128 if weight.is_complex() else torch.float64
    pairs = [tensor.detach().to(wide) for tensor in (vector, weight)]
    if weight.ndim < 2:
        pairs = [tensor.reshape(1, -1) for tensor in pairs]
    for filter_, target in zip(*pairs, strict=True):
        assert filter_.norm().item() == pytest.approx(target.norm().item(), rel=1e-6)


MODELS = {
    "residual": Residual,
    "transformer": TiedTransformer,
    "embedding": lambda: nn.Embedding(7, 5, padding_idx=0),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "grouped": lambda: nn.Conv1d(4, 8, 3, groups=4),
    "float32": lambda: nn.Linear(30, 20),
    "bfloat16": lambda: nn.Linear(30, 20).bfloat16(),
    "float16": lambda: nn.Linear(30, 20).half(),
    "complex": lambda: nn.Linear(30, 20, dtype=torch.complex64),
}


@pytest.mark.parametrize("select", [None, every_tensor])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_every_filter_is_as_long_as_the_weights(build, select):
    model = build()
    direction = filter_normalized_direction(model, select=select)
    assert direction.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert direction[name].shape == weight.shape
        assert direction[name].device == weight.device
        if weight.ndim == 1 and select is None:
            assert not direction[name].any()
        else:
            assert_filters_as_long_as_the_weights(direction[name], weight)


@given(
    shape=st.lists(st.integers(1, 5), max_size=4),
    exponents=st.lists(st.integers(-30, 30), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60)
def test_filters_of_any_shape_and_size_are_as_long_as_the_weights(shape, exponents, dtype):
    weight = torch.randn(shape, dtype=dtype)
    for filter_, exponent in zip(weight if shape else [], exponents, strict=False):
        filter_.mul_(10.0**exponent)
    model = nn.ParameterDict({"weight": weight})
    direction = filter_normalized_direction(model, select=every_tensor)
    assert_filters_as_long_as_the_weights(direction["weight"], weight)


@pytest.mark.parametrize("build", [Residual, TiedTransformer])
def test_a_direction_is_gaussian_noise_rescaled_filter_by_filter(build):
    model, generator = build(), seeded(3)
    direction = filter_normalized_direction(model, seeded(3))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
            for drawn, target, found in zip(noise, weight, direction[name], strict=True):
                torch.testing.assert_close(found, drawn / drawn.norm() * target.detach().norm())


def test_filters_of_zeros_get_zeros():
    model = Residual()  # its head has a bias of zeros
    with torch.no_grad():
        model.head.weight[2] = 0
    direction = filter_normalized_direction(model, select=every_tensor)
    assert not direction["head.bias"].any()
    assert not direction["head.weight"][2].any()
    assert direction["head.weight"][1].all()
    assert all(vector.isfinite().all() for vector in direction.values())


def test_select_chooses_the_tensors_that_get_a_direction():
    model = Residual()
    direction = filter_normalized_direction(model, select=lambda name, _: name.startswith("stem"))
    moving = {name for name, vector in direction.items() if vector.any()}
    assert moving == {"stem.0.weight", "stem.1.weight"}  # and its bias is zero


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
    first, second = (filter_normalized_direction(model)["weight"] for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(filter_normalized_direction(model)["weight"], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("select", [None, every_tensor])
def test_a_second_direction_is_orthogonal_and_still_as_long_as_the_weights(select):
    model = Residual()
    with torch.no_grad():  # filters of very unlike lengths
        model.head.weight.mul_(torch.logspace(-2, 1, 5)[:, None])
    first = filter_normalized_direction(model, seeded(0), select=select)
    free = filter_normalized_direction(model, seeded(1), select=select)
    second = filter_normalized_direction(model, seeded(1), select=select, orthogonal_to=first)
    assert abs(cosine(first, free)) > 1e-2
    assert abs(cosine(first, second)) < 0.1 * abs(cosine(first, free))
    for name, weight in model.named_parameters():
        if weight.ndim == 1 and select is None:
            assert not second[name].any()
        else:
            assert_filters_as_long_as_the_weights(second[name], weight)


def test_orthogonal_to_a_direction_of_other_tensors_changes_nothing():
    model = Residual()
    other = filter_normalized_direction(model, select=lambda _, param: param.ndim == 1)
    alone = filter_normalized_direction(model, seeded(1))
    beside = filter_normalized_direction(model, seeded(1), orthogonal_to=other)
    for name, vector in alone.items():
        torch.testing.assert_close(beside[name], vector)


def test_orthogonal_to_a_direction_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"orthogonal_to has 'nose'"):
        filter_normalized_direction(nn.Linear(2, 2), orthogonal_to={"nose": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"orthogonal_to\['weight'\].*\(2, 2\), got \(3,\)"):
        filter_normalized_direction(nn.Linear(2, 2), orthogonal_to={"weight": torch.ones(3)})


def test_cosine_is_that_of_the_concatenated_tensors():
    first, second = (filter_normalized_direction(Residual()) for _ in range(2))
    flat = [torch.cat([vector.flatten() for vector in d.values()]) for d in (first, second)]
    expected = nn.functional.cosine_similarity(*flat, dim=0).item()
    assert cosine(first, second) == pytest.approx(expected)
    assert cosine(first, first) == pytest.approx(1)
    assert cosine({"a": torch.ones(2)}, {"b": torch.ones(2)}) == 0


def test_a_default_device_elsewhere_changes_nothing():
    model = nn.Linear(3, 2)
    expected = filter_normalized_direction(model, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        direction = filter_normalized_direction(model, torch.Generator().manual_seed(0))
    assert all(direction[name].equal(vector) for name, vector in expected.items())
