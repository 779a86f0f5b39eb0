"""Real photographs that installed packages ship, so no download, and a camera that films them."""

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from vqa.io.video import Pixels

_FOLDERS = {"skimage": "data", "matplotlib": "mpl-data/sample_data", "sklearn": "datasets/images"}


@dataclass(frozen=True)
class Photograph:
    """One photograph inside an installed package, shrunk by an integer factor on loading.

    A scan that is soft at full size would make a pristine clip look blurred.
    """

    package: Literal["skimage", "matplotlib", "sklearn"]
    file: str
    part: Literal["train", "test"]
    reduce: int = 1

    @property
    def name(self) -> str:
        return self.file.rsplit(".", 1)[0]


# The two parts never share a photograph; each holds people, objects, textures, text and night sky.
PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("skimage", "astronaut.png", "train"),
    Photograph("skimage", "brick.png", "train"),
    Photograph("skimage", "camera.png", "train"),
    Photograph("sklearn", "china.jpg", "train"),
    Photograph("skimage", "coffee.png", "train"),
    Photograph("skimage", "grass.png", "train"),
    Photograph("skimage", "hubble_deep_field.jpg", "train", 2),
    Photograph("skimage", "ihc.png", "train"),
    Photograph("skimage", "motorcycle_left.png", "train"),
    Photograph("skimage", "page.png", "train"),
    Photograph("skimage", "retina.jpg", "train", 3),
    Photograph("skimage", "moon.png", "train", 2),
    Photograph("skimage", "chelsea.png", "test"),
    Photograph("skimage", "coins.png", "test"),
    Photograph("sklearn", "flower.jpg", "test"),
    Photograph("matplotlib", "grace_hopper.jpg", "test"),
    Photograph("skimage", "gravel.png", "test"),
    Photograph("skimage", "rocket.jpg", "test"),
    Photograph("skimage", "text.png", "test"),
)


def photographs_of(part: str, number: int | None = None) -> tuple[Photograph, ...]:
    """The first photographs of a part; all of them without a number."""
    return tuple(own for own in PHOTOGRAPHS if own.part == part)[:number]


# Files of one photograph are made one after the other.
@lru_cache(maxsize=1)
def load_photograph(photograph: Photograph) -> Pixels:
    """Pixels of a photograph, uint8 RGB [H, W, 3]; grey ones get three equal channels."""
    folder = resources.files(photograph.package) / _FOLDERS[photograph.package]
    with resources.as_file(folder / photograph.file) as path:
        if not path.is_file():
            raise FileNotFoundError(
                f"{photograph.package} does not ship {photograph.file}: install the versions"
                " that the extra 'examples' names"
            )
        with Image.open(path) as image:
            pixels = image.convert("RGB").reduce(photograph.reduce)
    return np.asarray(pixels, dtype=np.uint8)


@dataclass(frozen=True)
class CameraPath:
    """Where the camera looks in each of T frames."""

    centre: NDArray[np.floating[Any]]  # [T, 2] (row, column) in pixels of the photograph
    scale: NDArray[np.floating[Any]]  # [T] photograph pixels per output pixel
    angle: NDArray[np.floating[Any]]  # [T] in radians


def draw_camera_path(
    random: np.random.Generator,
    photograph_size: tuple[int, ...],
    frame_size: tuple[int, int],
    frames: int,
) -> CameraPath:
    """Draw a path that stays inside the photograph: pan, zoom, rotation and hand shake.

    The view is at least one photograph pixel per output pixel wherever the photograph is large
    enough (a pristine clip must be sharp) and at most what fits in it.
    """
    widest = min(p / (1.3 * f) for p, f in zip(photograph_size, frame_size, strict=True))
    narrowest = min(1.0, widest)
    base = narrowest * (widest / narrowest) ** random.uniform(0.0, 1.0)
    time = np.linspace(-0.5, 0.5, frames)
    zoom = random.uniform(-0.12, 0.12)
    turn = math.radians(random.uniform(-6.0, 6.0))
    speed = random.uniform(-1.5, 1.5, size=2) * base * frames
    shake = np.cumsum(random.normal(0.0, 0.25, size=(frames, 2)), axis=0) * base
    half_view = np.array(frame_size) * base / 2
    low, high = half_view, np.array(photograph_size) - half_view
    start = random.uniform(low, high)
    centre = np.clip(start + time[:, None] * speed + shake, low, high)
    return CameraPath(centre, base * (1.0 + zoom * time), turn * time)


def film(photograph: Pixels, path: CameraPath, frame_size: tuple[int, int]) -> Pixels:
    """Film a photograph [H, W, 3] along a path: uint8 clip [T, h, w, 3].

    The photograph is first shrunk with an antialiasing filter to the path's mean scale, then each
    frame is cut by bicubic interpolation; a view that leaves the photograph sees it mirrored.
    """
    image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float()
    shrink = max(1.0, float(path.scale.mean()))
    size = [round(side / shrink) for side in photograph.shape[:2]]
    image = functional.interpolate(image, size, mode="bilinear", antialias=True)
    grid = _sampling_grid(path, frame_size, photograph.shape[:2])
    views = functional.grid_sample(
        image.expand(len(path.angle), -1, -1, -1),
        grid,
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    clip: Pixels = views.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return clip


def _sampling_grid(
    path: CameraPath, frame_size: tuple[int, int], photograph_size: tuple[int, ...]
) -> torch.Tensor:
    """Coordinates in [-1, 1] that `grid_sample` reads, float32 [T, h, w, 2] as (x, y)."""
    height, width = frame_size
    rows = np.arange(height) - (height - 1) / 2
    columns = np.arange(width) - (width - 1) / 2
    cosine = (path.scale * np.cos(path.angle))[:, None, None]
    sine = (path.scale * np.sin(path.angle))[:, None, None]
    y = path.centre[:, 0, None, None] + cosine * rows[:, None] + sine * columns
    x = path.centre[:, 1, None, None] - sine * rows[:, None] + cosine * columns
    normalised = np.stack([2 * x / photograph_size[1] - 1, 2 * y / photograph_size[0] - 1], axis=-1)
    return torch.from_numpy(normalised).float()
