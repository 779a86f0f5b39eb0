"""Detection as torchvision's reference trains it: the model returns a dictionary of losses."""

from typing import Any

import pytest
import torch
from plain_loop import WRAPS
from reference import same_bits
from tiers import first_fast
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from torch_awp import freeze_running_stats

STEPS = 2


def detector() -> nn.Module:
    torch.manual_seed(0)
    backbone: Any = nn.Sequential(*list(resnet18(weights=None).children())[:5])
    backbone.out_channels = 64
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    return RetinaNet(backbone, num_classes=3, min_size=48, max_size=64, anchor_generator=anchors)


def scenes() -> list[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[4.0, 4.0, 24.0, 28.0], [20.0, 10.0, 44.0, 40.0]])
    return [
        (
            [torch.rand(3, 48, 56, generator=generator) for _ in range(2)],
            [{"boxes": boxes + shift, "labels": torch.tensor([1, 2])} for shift in (0, 2)],
        )
        for _ in range(STEPS)
    ]


def build(wrap: str, model: nn.Module) -> tuple[Any, torch.optim.lr_scheduler.LRScheduler]:
    parameters = [param for param in model.parameters() if param.requires_grad]
    base = torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=5e-4)
    optimizer = WRAPS[wrap](base)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=STEPS)


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_a_detector_that_returns_its_losses_equals_a_loop_by_hand(wrap):
    model = detector()
    optimizer, scheduler = build(wrap, model)
    optimizer.attach(model)
    for images, targets in scenes():
        losses = sum(model(images, targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        scheduler.step()

    twin = detector()
    optimizer, scheduler = build(wrap, twin)
    for images, targets in scenes():
        for p in optimizer.passes():
            optimizer.zero_grad()
            with freeze_running_stats(twin, p.index > 0):
                sum(twin(images, targets).values()).backward()
        optimizer.step()
        scheduler.step()
    assert same_bits(list(model.state_dict().values()), list(twin.state_dict().values()))
