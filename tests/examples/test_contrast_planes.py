"""The first layer of the small image networks."""

import pytest
import torch

from vqa.models.quality_planes import ContrastPlanes, quality_planes

MEAN, DEVIATION = (
    torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - MEAN) / DEVIATION


def test_it_takes_normalised_images_to_the_planes_of_their_luma():
    luma = torch.randint(0, 256, (2, 16, 24)).float()
    grey = luma[:, None].expand(2, 3, 16, 24)

    planes = ContrastPlanes()(normalised(grey))

    expected = quality_planes(luma)[[0, 2]].transpose(0, 1)
    torch.testing.assert_close(planes, expected, atol=2e-3, rtol=0)


def test_colours_weigh_as_in_luma():
    colours = 200 * torch.eye(3).view(3, 3, 1, 1) * torch.rand(1, 1, 16, 16)
    luma = (colours * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)

    planes = ContrastPlanes()(normalised(colours))

    torch.testing.assert_close(
        planes, quality_planes(luma)[[0, 2]].transpose(0, 1), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_planes_have_the_type_of_the_images(model_dtype):
    assert ContrastPlanes()(torch.zeros(1, 3, 8, 8, dtype=model_dtype)).dtype == model_dtype
