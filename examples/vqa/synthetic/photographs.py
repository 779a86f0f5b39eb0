"""Real photographs that installed packages ship, so that mini-UGC needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

_FOLDERS = {
    "skimage": "data",
    "matplotlib": "mpl-data/sample_data",
    "sklearn": "datasets/images",
}


@dataclass(frozen=True)
class Photograph:
    """One photograph inside an installed package.

    `reduce` is the integer factor by which it is shrunk on loading: a scan that is soft at full
    size would make a pristine clip look blurred.
    """

    package: Literal["skimage", "matplotlib", "sklearn"]
    file: str
    part: Literal["train", "test"]
    reduce: int = 1

    @property
    def name(self) -> str:
        """File name without its ending."""
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


def load_photograph(photograph: Photograph) -> Pixels:
    """Pixels of a photograph, uint8 RGB [H, W, 3]; grey ones get three equal channels.

    Raises:
        FileNotFoundError: the installed package does not ship the file.
    """
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
