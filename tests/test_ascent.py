"""Adversarial perturbation against an independent float64 computation and as invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ascent, batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import Tensor, nn
from torch.func import functional_call, grad

from torch_awp import AdversarialWeightPerturbation

CONSTRAINTS = ["layer", "element"]


def perturbed(weight: Tensor, gradient: Tensor, gamma: float = 0.1, **kwargs: object) -> Tensor:
    """Return ``w + v`` of one tensor for a given gradient."""
    param = nn.Parameter(weight.clone())
    param.grad = gradient.clone()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), gamma, **kwargs)
    with optimizer.perturb():
        return param.detach().clone()


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what runs where values cannot be read without waiting run on the CPU."""
    monkeypatch.setattr("torch_awp.functional.on_host", lambda tensor: False)


def reference_ascent(model: nn.Module, data: tuple[Tensor, Tensor], gamma: float, **kwargs):
    names = [name for name, _ in model.named_parameters()]

    def loss_at(params):
        return nn.functional.mse_loss(functional_call(model, params, data[0]), data[1])

    def gradients_at(weights):
        return grad(loss_at)(dict(zip(names, weights, strict=True))).values()

    return ascent(list(model.parameters()), gradients_at, gamma, **kwargs)


LONG = {
    "one number": lambda: torch.tensor(0.5).expand(300, 300),  # as autograd gives that of a sum
    "one row": lambda: torch.randn(300).expand(300, 300),
    "one column of every fifth": lambda: torch.randn(1500)[::5, None].expand(300, 300),
    "a slice of columns": lambda: torch.randn(300, 500)[:, 100:400],
    "every fifth row": lambda: torch.randn(1500, 300)[::5],
    "transposed": lambda: torch.randn(300, 300).t(),
    "windows that overlap": lambda: torch.randn(900).as_strided((300, 300), (2, 1)),
    "overlapping to a whole number": lambda: torch.randn(90000).as_strided((300, 300), (150, 151)),
}


@pytest.mark.parametrize(
    ("moved", "form"),
    [
        *(("gradient", form) for form in LONG),
        *(("weight", form) for form in ("a slice of columns", "every fifth row", "transposed")),
    ],
)
def test_long_tensors_that_lie_in_memory_in_any_way(moved, form):
    torch.manual_seed(0)
    strided, plain = LONG[form](), torch.randn(300, 300)
    weight, gradient = (strided, plain) if moved == "weight" else (plain, strided)
    param = nn.Parameter(weight)
    param.grad = gradient
    w, g = weight.double(), gradient.double()
    expected = w + 0.1 * w.norm() * g / g.norm()

    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), gamma=0.1)
    with optimizer.perturb():
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("step_size", [None, 0.003, 0.04])
def test_steps_match_the_float64_reference(constraint, steps, step_size):
    model, data = small_net(), batch()
    kwargs = {"steps": steps, "step_size": step_size, "constraint": constraint}
    expected = reference_ascent(model, data, 0.05, **kwargs)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1), 0.05, **kwargs
    )
    closure = closure_for(model, data)
    closure()
    with optimizer.perturb():
        for _ in range(steps - 1):
            closure()
            optimizer.ascend()
        for param, reference in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(param.detach(), reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_float32_matches_the_float64_reference_to_rounding(constraint):
    model, data = small_net(torch.float32), batch(torch.float32)
    double = (small_net(), tuple(t.double() for t in data))
    double[0].load_state_dict(model.state_dict())
    expected = reference_ascent(*double, 0.05, steps=3, constraint=constraint)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1), 0.05, steps=3, constraint=constraint
    )
    closure = closure_for(model, data)
    closure()
    with optimizer.perturb():
        for _ in range(2):
            closure()
            optimizer.ascend()
        for param, reference in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(param.detach().double(), reference, rtol=1e-5, atol=1e-6)


def test_one_step_along_the_gradient_has_length_gamma_times_the_weight():
    weight, gradient = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6).double()
    v = perturbed(weight, gradient, gamma=0.02) - weight
    torch.testing.assert_close(v.norm(), 0.02 * weight.norm())
    torch.testing.assert_close(v / v.norm(), gradient / gradient.norm(), rtol=1e-10, atol=1e-12)


def test_the_layer_norm_is_that_of_the_unperturbed_weight():
    weight, gradient = torch.full((2, 2), 1.0).double(), torch.full((2, 2), 3.0).double()
    param = nn.Parameter(weight.clone())
    param.grad = gradient
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD([param], lr=0.1), 1.0, steps=2, step_size=0.25
    )
    with optimizer.perturb():
        optimizer.ascend()
        # Twice 0.25 * 2 along (1, 1, 1, 1) / 2; with the norm of w + v it would be 1.5625.
        torch.testing.assert_close(param.detach(), torch.full((2, 2), 1.5).double())


def test_a_large_step_is_projected_back_onto_the_ball():
    weight, gradient = torch.randn(3, 3).double(), torch.randn(3, 3).double()
    far = perturbed(weight, gradient, gamma=0.01, step_size=1.0)
    near = perturbed(weight, gradient, gamma=0.01)
    torch.testing.assert_close(far, near, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("first_step_size", [0.45, 0.3])
@pytest.mark.parametrize("later", [{"step_size": 0.1}, {"gamma": 0.25}])
def test_a_block_in_which_settings_change_ends_inside_the_ball(first_step_size, later):
    param = nn.Parameter(torch.randn(6, 7))
    param.grad, home = torch.randn(6, 7), param.detach().clone()
    base = torch.optim.SGD([param], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.35, steps=2, step_size=first_step_size)
    with optimizer.perturb():
        optimizer.step_size = later.get("step_size")
        gamma = base.param_groups[0]["perturb_gamma"] = later.get("gamma", 0.35)
        optimizer.ascend()
        length = (param.detach() - home).norm() / home.norm()
    torch.testing.assert_close(length, torch.tensor(gamma))


@pytest.mark.parametrize("exponent", [-25, -22, 19, 30])
def test_a_tiny_or_huge_weight_is_projected_onto_the_ball_too(exponent):
    """The squares of its perturbation leave the range of float32."""
    weight = torch.randn(5, 6) * 10.0**exponent
    moved = perturbed(weight, torch.randn(5, 6), gamma=0.5, step_size=1.0)
    v, home = moved.double() - weight.double(), weight.double()
    torch.testing.assert_close(
        v.norm() / home.norm(), torch.tensor(0.5).double(), rtol=1e-5, atol=0
    )


def test_a_large_step_with_the_element_constraint_fills_the_box():
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]]).double()
    gradient = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double()
    moved = perturbed(weight, gradient, gamma=0.01, step_size=1.0, constraint="element")
    torch.testing.assert_close(moved, weight + 0.01 * weight.abs() * gradient.sign())


@st.composite
def weight_and_gradients(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    exponents = draw(st.tuples(*[st.floats(-6, 6)] * 4))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * 10**exponent
        for exponent in exponents
    ]


@settings(max_examples=60)
@given(
    tensors=weight_and_gradients(),
    gamma=st.floats(1e-6, 2.0),
    step_size=st.none() | st.floats(1e-6, 5.0),
    constraint=st.sampled_from(CONSTRAINTS),
)
def test_every_step_stays_in_ball_and_box(tensors, gamma, step_size, constraint):
    weight, *gradients = tensors
    param = nn.Parameter(weight.clone())
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD([param], lr=0.1),
        gamma,
        steps=3,
        step_size=step_size,
        constraint=constraint,
    )
    param.grad = gradients[0]
    with optimizer.perturb():
        for gradient in gradients[1:]:
            v = param.detach() - weight
            slack = 1e-12 * weight.abs() + 1e-300
            assert v.norm() <= gamma * weight.norm() * (1 + 1e-9) + slack.norm()
            if constraint == "element":
                assert (v.abs() <= gamma * weight.abs() * (1 + 1e-9) + slack).all()
            param.grad = gradient
            optimizer.ascend()
    assert same_bits([param], [weight])


@settings(max_examples=60)
@given(
    exponent=st.floats(-30, 30),
    steps=st.integers(1, 3),
    constraint=st.sampled_from(CONSTRAINTS),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_the_scale_of_the_loss_does_not_matter(exponent, steps, constraint, dtype):
    generator = torch.Generator().manual_seed(1)
    weight, *gradients = (
        torch.randn(4, 5, generator=generator, dtype=dtype) for _ in range(1 + steps)
    )

    def moved(scale: float) -> Tensor:
        param = nn.Parameter(weight.clone())
        optimizer = AdversarialWeightPerturbation(
            torch.optim.SGD([param], lr=0.1), 0.1, steps=steps, constraint=constraint
        )
        param.grad = gradients[0] * scale
        with optimizer.perturb():
            for gradient in gradients[1:]:
                param.grad = gradient * scale
                optimizer.ascend()
            return param.detach().clone()

    torch.testing.assert_close(moved(10**exponent), moved(1.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("device_path", [False, True])
def test_a_non_finite_gradient_moves_nothing_else_than_usual(
    constraint, dtype, bad, device_path, monkeypatch
):
    if device_path:
        as_on_an_accelerator(monkeypatch)
    sick, sound = (nn.Parameter(torch.randn(3, 3, dtype=dtype)) for _ in range(2))
    sick.grad, sound.grad = torch.randn(3, 3, dtype=dtype), torch.randn(3, 3, dtype=dtype)
    sick.grad[1, 1] = bad
    before = [sick.detach().clone(), sound.detach().clone()]
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD([sick, sound], lr=0.1), 0.5, constraint=constraint
    )
    with optimizer.perturb():
        assert torch.equal(sick, before[0])
        assert not torch.equal(sound, before[1])
        assert sound.isfinite().all()
    assert same_bits([sick, sound], before)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("step_size", [None, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_device_path_moves_like_the_host_path(constraint, step_size, dtype, monkeypatch):
    weight, gradient = torch.randn(4, 5, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    kwargs = {"constraint": constraint, "step_size": step_size}
    on_host = perturbed(weight, gradient, **kwargs)
    as_on_an_accelerator(monkeypatch)
    torch.testing.assert_close(perturbed(weight, gradient, **kwargs), on_host)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_a_zero_weight_or_gradient_does_not_move(constraint, zero):
    weight, gradient = torch.randn(3, 4), torch.randn(3, 4)
    (weight if zero == "weight" else gradient).zero_()
    still = nn.Parameter(weight.clone())
    other = nn.Parameter(torch.ones(2, 2))
    still.grad, other.grad = gradient, torch.ones(2, 2)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD([still, other], lr=0.1), 0.1, constraint=constraint
    )
    with optimizer.perturb():
        assert torch.equal(still, weight)
        assert not torch.equal(other, torch.ones(2, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_weight_does_not_move(bad):
    weight = torch.randn(3, 4)
    weight[0, 0] = bad
    torch.testing.assert_close(perturbed(weight, torch.ones(3, 4)), weight, equal_nan=True)


def test_a_half_precision_gradient_beyond_its_norm_range_still_moves():
    weight, gradient = torch.randn(8, 8, dtype=torch.float16), torch.full((8, 8), 6e4).half()
    moved = perturbed(weight, gradient, gamma=0.5)
    expected = perturbed(weight.double(), gradient.double(), gamma=0.5)
    torch.testing.assert_close(moved.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_wide_and_rounded_once(dtype):
    weight, gradient = torch.randn(16, 16).to(dtype), (1e-4 * torch.randn(16, 16)).to(dtype)
    exact = perturbed(weight.double(), gradient.double(), gamma=0.05)
    moved = perturbed(weight, gradient, gamma=0.05).double()
    spacing = torch.finfo(dtype).eps * 2.0 ** (torch.frexp(exact).exponent - 1)
    # Half a spacing, and what float32 adds to it.
    assert ((moved - exact).abs() <= (0.5 + 1e-3) * spacing).all()


def test_a_sparse_gradient_moves_like_its_dense_form():
    weight = torch.randn(5, 3).double()
    sparse = torch.sparse_coo_tensor(
        [[1, 3, 1]], torch.randn(3, 3).double(), (5, 3), check_invariants=True
    )
    param = nn.Parameter(weight.clone())
    param.grad = sparse
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    with optimizer.perturb():
        expected = perturbed(weight, sparse.to_dense())
        torch.testing.assert_close(param.detach(), expected)
        param.grad = sparse.clone()
    optimizer.step()


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_complex_tensor_moves_like_its_real_and_imaginary_parts(constraint):
    weight, gradient = (torch.randn(4, 3, dtype=torch.complex128) for _ in range(2))
    expected = perturbed(
        torch.view_as_real(weight), torch.view_as_real(gradient), constraint=constraint
    )
    moved = perturbed(weight, gradient, constraint=constraint)
    torch.testing.assert_close(torch.view_as_real(moved), expected)


def test_a_selected_scalar_of_an_accelerator_can_move():
    """The meta device takes its way, without values."""
    param = nn.Parameter(torch.tensor(2.0, device="meta"))
    param.grad = torch.tensor(1.0, device="meta")
    base = torch.optim.SGD([("logit_scale", param)], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, select=lambda name, param: True)
    with optimizer.perturb():
        assert param.shape == ()


def test_a_selected_scalar_moves():
    model = nn.ParameterDict({"logit_scale": nn.Parameter(torch.tensor(2.0))})
    model["logit_scale"].grad = torch.tensor(-3.0)
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, select=lambda name, param: True)
    with optimizer.perturb():
        torch.testing.assert_close(model["logit_scale"].detach(), torch.tensor(1.8))


def test_a_strided_or_channels_last_tensor_moves_like_a_contiguous_one():
    weight, gradient = torch.randn(4, 3, 2, 2).double(), torch.randn(4, 3, 2, 2).double()
    moved = perturbed(weight.to(memory_format=torch.channels_last), gradient)
    torch.testing.assert_close(moved, perturbed(weight, gradient))


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_tensor_moves_like_the_reference_however_it_lies(
    constraint, of_weight, of_gradient, dtype
):
    weight, gradient = (torch.randn(130, 60, 5, 4).to(dtype) for _ in range(2))  # 156 000 elements
    param = nn.Parameter(LAYOUTS[of_weight](weight))
    param.grad = LAYOUTS[of_gradient](gradient)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD([param], lr=0.1), 0.5, constraint=constraint
    )
    with optimizer.perturb():
        moved = param.detach().clone()
    (expected,) = ascent([weight], lambda weights: [gradient], 0.5, constraint=constraint)
    torch.testing.assert_close(moved, expected.to(dtype))
    assert same_bits([param.detach().contiguous()], [weight])


@pytest.mark.parametrize("shape", [(2500, 4000), (1, 2, 5_000_000)])
def test_the_length_of_a_move_is_right_where_float32_sums_go_wrong(shape):
    """Summed one after the other in float32, ten million equal squares lose 0.8 % of the norm."""
    weight = torch.full(shape, 0.1)
    moved = perturbed(weight, torch.full_like(weight, 0.3), gamma=0.5)
    torch.testing.assert_close(moved, torch.full_like(weight, 0.15), rtol=2e-5, atol=0)


def test_without_a_gradient_nothing_moves():
    with_gradient, without = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    with_gradient.grad = torch.randn(3, 3)
    before = without.detach().clone()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD([with_gradient, without], lr=0.1), 0.1
    )
    with optimizer.perturb():
        assert torch.equal(without, before)


def test_a_tensor_whose_first_gradient_comes_later_climbs_then():
    early, late = (nn.Parameter(torch.randn(3, 3).double()) for _ in range(2))
    before = late.detach().clone()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([early, late], lr=0.1), 0.1, steps=2)
    early.grad = torch.randn(3, 3).double()
    with optimizer.perturb():
        late.grad = torch.randn(3, 3).double()
        optimizer.ascend()
        torch.testing.assert_close((late - before).norm(), 0.05 * before.norm())
    assert same_bits([late], [before])


def test_frozen_tensors_never_move():
    param = nn.Parameter(torch.randn(3, 3))
    param.grad = torch.randn(3, 3)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    param.requires_grad_(False)
    before = param.detach().clone()
    with optimizer.perturb():
        assert torch.equal(param, before)


def test_by_default_only_tensors_with_more_than_one_dimension_move():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    before = weights_of(model)
    loss_of(model, data).backward()
    with optimizer.perturb():
        moved = [not torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True)]
    assert moved == [True, False, True, False]


def test_select_decides_by_name_and_tensor():
    model, data = small_net(), batch()
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(
        base, 0.1, select=lambda name, param: name == "0.bias" or param.shape == (3, 7)
    )
    before = weights_of(model)
    loss_of(model, data).backward()
    with optimizer.perturb():
        moved = [not torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True)]
    assert moved == [False, True, True, False]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_tensor_that_occurs_twice_moves_once():
    param = nn.Parameter(torch.randn(3, 3).double())
    param.grad = torch.randn(3, 3).double()
    before = param.detach().clone()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param, param], lr=0.1), 0.1)
    with optimizer.perturb():
        torch.testing.assert_close((param - before).norm(), 0.1 * before.norm())
    assert same_bits([param], [before])


def test_tied_layers_move_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second).double()
    before = first.weight.detach().clone()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    model(torch.randn(2, 4).double()).sum().backward()
    with optimizer.perturb():
        torch.testing.assert_close((first.weight - before).norm(), 0.1 * before.norm())


def test_parameters_sharing_memory_come_back():
    storage = torch.randn(4, 4)
    params = [nn.Parameter(storage), nn.Parameter(storage[1:])]
    before = storage.clone()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1)
    for param in params:
        param.grad = torch.randn_like(param)
    with optimizer.perturb():
        assert not torch.equal(storage, before)
    assert same_bits([storage], [before])


def test_epsilon_enters_both_norms():
    weight, gradient = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    moved = perturbed(weight, gradient, gamma=0.1, epsilon=0.5, step_size=0.01)
    expected = 0.01 * (weight.norm() + 0.5) * gradient / (gradient.norm() + 0.5)
    torch.testing.assert_close(moved - weight, expected)


def test_a_lazily_conjugated_gradient_moves_like_its_values():
    weight = torch.randn(3, 3, dtype=torch.complex128)
    gradient = torch.randn(3, 3, dtype=torch.complex128)
    param = nn.Parameter(weight.clone())
    param.grad = gradient.conj()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    with optimizer.perturb():
        moved = param.detach().clone()
    assert param.grad.is_conj()
    torch.testing.assert_close(moved, perturbed(weight, gradient.conj().resolve_conj()))
