"""The moving camera: what is filmed is where the path looks."""

import numpy as np
import pytest

from vqa.synthetic.photographs import (
    PHOTOGRAPHS,
    CameraPath,
    draw_camera_path,
    film,
    load_photograph,
)


def still_path(centre: tuple[float, float], scale: float, angle: float = 0.0) -> CameraPath:
    return CameraPath(np.array([centre]), np.array([scale]), np.array([angle]))


def ramp_photograph() -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(100), np.arange(120), indexing="ij")
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def test_at_full_scale_a_view_is_a_crop():
    photograph = ramp_photograph()

    view = film(photograph, still_path((50.0, 60.0), 1.0), (20, 30))

    assert (view[0] == photograph[40:60, 45:75]).all()


def test_scale_two_sees_twice_as_much():
    view = film(ramp_photograph(), still_path((50.0, 60.0), 2.0), (20, 30)).astype(int)

    assert view[0, -1, 0, 0] - view[0, 0, 0, 0] == pytest.approx(2 * 19, abs=1)
    assert view[0, 0, -1, 1] - view[0, 0, 0, 1] == pytest.approx(2 * 29, abs=1)


def test_a_quarter_turn_swaps_rows_and_columns():
    view = film(ramp_photograph(), still_path((50.0, 60.0), 1.0, np.pi / 2), (20, 20)).astype(int)

    assert abs(view[0, 0, 0, 0] - view[0, -1, 0, 0]) <= 1
    assert abs(view[0, 0, 0, 0] - view[0, 0, -1, 0]) == pytest.approx(19, abs=1)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda photograph: photograph.name)
def test_a_drawn_path_looks_into_the_photograph_and_moves(photograph):
    size = load_photograph(photograph).shape[:2]
    for seed in range(20):
        path = draw_camera_path(np.random.default_rng(seed), size, (128, 160), 12)
        # The corners of a view that is turned or zoomed may stick out a little.
        reach = np.array([128, 160]) * path.scale[:, None] / 2 * 0.9
        assert (path.centre - reach > 0).all()
        assert (path.centre + reach < size).all()
        assert np.ptp(path.centre, axis=0).max() > 0 or np.ptp(path.angle) > 0
