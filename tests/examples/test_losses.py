"""The training losses against the published implementation and against plain Python."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqa.training.losses import l1_rank_loss, plcc_loss, quality_loss, rank_loss

CONFORMANCE = np.load(Path(__file__).parents[1] / "data" / "losses_metrics.npz")
CASES = sorted({key.split("/")[1] for key in CONFORMANCE.files if key.startswith("f64/")})
SIMPLE_VQA = np.load(Path(__file__).parents[1] / "data" / "l1rankloss.npz")
SIMPLE_VQA_CASES = sorted({key.split("/")[0] for key in SIMPLE_VQA.files})
ORDERS = {"nominal_preds_first": False, "train_order_labels_first": True}
LOSSES = {"plcc": plcc_loss, "rank": rank_loss, "total": quality_loss}


def case_tensors(precision: str, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, target = (
        torch.tensor(CONFORMANCE[f"{precision}/{case}/{name}"]) for name in ("pred", "target")
    )
    return predicted.requires_grad_(), target


def published(precision: str, case: str, loss: str) -> np.ndarray:
    name = "total" if loss == "total" else f"{loss}_loss"
    return CONFORMANCE[f"{precision}/{case}/{name}"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-7), ("f32", 1e-6)])
def test_value_is_the_published_one(precision, tolerance, case, loss):
    value = LOSSES[loss](*case_tensors(precision, case)).item()

    assert value == pytest.approx(float(published(precision, case, loss)), abs=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_published_one(case, loss):
    predicted, target = case_tensors("f64", case)

    (gradient,) = torch.autograd.grad(LOSSES[loss](predicted, target), predicted)

    np.testing.assert_allclose(gradient, CONFORMANCE[f"f64/{case}/grad_{loss}"], atol=1e-10)


def test_one_clip_has_no_linearity_to_lose_and_no_rank():
    one = torch.ones(1, 1)

    assert plcc_loss(one, one) == float(CONFORMANCE["B1_note/plcc_loss"])
    assert rank_loss(one, one).isnan()


def test_rank_loss_averages_the_disorder_of_all_ordered_pairs():
    predicted, target = [1.0, 3.0, 2.5, -1.0], [0.0, 1.0, 2.0, 2.0]
    disorder = [
        max(0.0, (p_i - p_j) * np.sign(q_j - q_i))
        for (p_i, q_i), (p_j, q_j) in permutations(zip(predicted, target, strict=True), 2)
    ]
    expected = sum(disorder) / len(disorder) / (1 + max(disorder))

    value = rank_loss(torch.tensor(predicted), torch.tensor(target))

    assert value.item() == pytest.approx(expected)


def test_a_linear_prediction_in_the_right_order_costs_nothing():
    target = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)

    assert quality_loss(3 * target - 1, target).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", SIMPLE_VQA_CASES)
def test_value_and_gradient_of_l1_rank_loss_are_the_published_ones(case, order):
    predicted = torch.tensor(SIMPLE_VQA[f"{case}/outputs"], requires_grad=True)
    target = torch.tensor(SIMPLE_VQA[f"{case}/labels"])

    loss = l1_rank_loss(predicted, target, released_order=ORDERS[order])
    (gradient,) = torch.autograd.grad(loss, predicted)

    assert loss.item() == pytest.approx(float(SIMPLE_VQA[f"{case}/{order}"]), rel=1e-6)
    published_gradient = SIMPLE_VQA[f"{case}/{order}/grad_wrt_outputs"]
    np.testing.assert_allclose(gradient, published_gradient, atol=1e-7)


def test_in_the_released_order_only_the_absolute_error_has_a_gradient():
    predicted = torch.tensor([1.0, 1.2, 0.9], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.5, 0.4, 1.0], dtype=torch.float64)

    loss = l1_rank_loss(predicted, target, released_order=True)
    gradient = torch.autograd.grad(loss, predicted)[0]

    error = (predicted - target).abs().mean()
    assert loss > error
    assert torch.equal(gradient, torch.autograd.grad(error, predicted)[0])


def test_l1_rank_loss_compares_only_pairs_with_close_opinion_scores():
    predicted, target = [4.0, 1.0, 3.0, 3.5, 0.0], [1.0, 1.5, 3.0, 1.5, 4.0]
    pairs = [(0, 1), (0, 3)]  # (1, 3) are equal, all others a point or more apart
    disorder = [max(0.0, predicted[low] - predicted[high]) for low, high in pairs]
    error = np.abs(np.subtract(predicted, target)).mean()

    loss = l1_rank_loss(torch.tensor(predicted), torch.tensor(target))

    assert loss.item() == pytest.approx(error + sum(disorder) / len(pairs))


@pytest.mark.parametrize("released_order", [False, True])
def test_l1_rank_loss_of_one_clip_is_its_absolute_error(released_order):
    loss = l1_rank_loss(torch.tensor([[3.0]]), torch.tensor([[4.5]]), released_order=released_order)

    assert loss.item() == 1.5


SCORES = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8)


@given(SCORES, st.integers(0, 9), st.randoms(use_true_random=False))
def test_no_loss_depends_on_the_order_of_the_clips(scores, seed, random):
    target = torch.tensor(scores, dtype=torch.float64)
    predicted = torch.randn(len(scores), generator=torch.Generator().manual_seed(seed)).double()
    order = torch.tensor(random.sample(range(len(scores)), len(scores)))

    for loss in (quality_loss, l1_rank_loss):
        here, elsewhere = loss(predicted, target), loss(predicted[order], target[order])
        assert elsewhere.item() == pytest.approx(here.item(), rel=1e-9, abs=1e-12)
