"""The landscape of a model of the examples' library, against functional evaluation."""

import torch
from landscape_models import loss_moved
from torch import nn
from torchvision.models import resnet18

from torch_awp.landscape import filter_normalized_direction, loss_curve


def test_filters_are_as_long_as_the_weights():
    model = resnet18()
    for name, vector in filter_normalized_direction(model).items():
        weight = model.get_parameter(name).detach()
        if weight.ndim == 1:
            assert not vector.any()
        else:
            lengths, expected = (t.double().flatten(1).norm(dim=1) for t in (vector, weight))
            torch.testing.assert_close(lengths, expected, rtol=1e-6, atol=0)


def test_the_curve_is_its_loss_by_functions():
    model = resnet18(num_classes=4)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 3])

    def loss_fn(forward):
        return nn.functional.cross_entropy(forward(images), labels)

    direction = filter_normalized_direction(model)
    expected = [loss_moved(model, loss_fn, direction, alpha) for alpha in (-0.5, 0.0, 0.5)]
    curve = loss_curve(model, loss_fn, direction, [-0.5, 0.0, 0.5])
    torch.testing.assert_close(curve, torch.stack(expected), rtol=1e-4, atol=1e-5)
