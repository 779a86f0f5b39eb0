"""The three planes that the small model sees."""

import numpy as np
import torch
from scipy import ndimage

from vqa.models.quality_planes import PLANES, quality_planes


def noisy_video(frames: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, 24, 32), generator=generator, dtype=torch.uint8)


def smoothed(image: np.ndarray) -> np.ndarray:
    # truncate: the window ends after 3 pixels
    return ndimage.gaussian_filter(image, 7 / 6, mode="mirror", truncate=3 / (7 / 6))


def test_first_plane_is_mscn_as_scipy_computes_it():
    luma = noisy_video()
    image = luma[1].numpy().astype(float)
    mean = smoothed(image)
    deviation = np.sqrt(np.maximum(smoothed(image**2) - mean**2, 0))

    mscn = quality_planes(luma)[0, 1]

    np.testing.assert_allclose(mscn, (image - mean) / (deviation + 1), atol=1e-4)


def test_second_plane_is_zero_where_the_video_stands_still():
    luma = noisy_video(4)
    luma[2] = luma[1]

    change = quality_planes(luma)[1]

    assert change[2].abs().max() == 0
    assert change[3].abs().max() > 0


def test_the_first_frame_takes_the_change_of_the_second():
    luma = noisy_video(2)
    change, contrast = quality_planes(luma)[1], quality_planes(luma)[2]

    grey_levels = change * (contrast + 2).exp()

    torch.testing.assert_close(grey_levels[0], grey_levels[1] * 0 + luma.float().diff(dim=0)[0])


def test_one_frame_alone_does_not_change():
    planes = quality_planes(noisy_video(1))

    assert planes[1].abs().max() == 0
    torch.testing.assert_close(planes[0], quality_planes(noisy_video(1).repeat(2, 1, 1))[0, :1])


def test_a_flat_picture_has_no_contrast():
    planes = quality_planes(torch.full((2, 16, 16), 77))

    # The variance is a difference of squares: its rounding, some 1e-3 of 77², is under a root.
    torch.testing.assert_close(planes[2], torch.full((2, 16, 16), -2.0), atol=0.2, rtol=0)
    assert planes[:2].abs().max() < 0.1


def test_brightness_does_not_matter():
    luma = noisy_video() // 2

    torch.testing.assert_close(
        quality_planes(luma)[:2], quality_planes(luma + 100)[:2], atol=1e-2, rtol=1e-2
    )


def test_planes_are_stacked_in_float32():
    planes = quality_planes(noisy_video())

    assert planes.shape == (PLANES, 3, 24, 32)
    assert planes.dtype == torch.float32
