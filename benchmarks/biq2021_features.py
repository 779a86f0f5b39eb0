"""Natural-scene statistics of the BIQ2021 photographs, the table that `generalization.py` reads.

Every image is cut into 8 x 8 cells, as FAST-VQA's fragment grid does. In every cell, at full and at
half resolution, moments of the MSCN coefficients (Mittal et al. 2012), of products of neighbouring
ones, of gradients, contrast, brightness and opponent colours are taken; mean and standard deviation
over the cells describe the image.

The images are not part of this repository; the table is.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn import functional

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "examples"))

from vqa.io.files import replacing
from vqa.models.quality_planes import quality_planes
from vqa.processes import progress_bar

GRID = 8
SCALES = (1, 2)

# Along rows, columns and both diagonals.
_NEIGHBOURS = {"h": (0, 1), "v": (1, 0), "d": (1, 1), "e": (1, -1)}


@dataclass(frozen=True)
class Features:
    """Compute the table."""

    images_root: Path
    """Folder with `labels.csv` (image_name, mos, split) and `images/`."""
    output: Path = Path(__file__).parent / "data" / "biq2021.npz"


def image_features(rgb: Tensor) -> dict[str, float]:
    """All statistics of one image.

    Args:
        rgb: uint8 or floating [3, H, W], 0..255; sides of at least 128 pixels.

    Returns:
        `<statistic>/<scale>/<mean or std>` -> value; pooled over the 8 x 8 cells.

    Raises:
        ValueError: another shape, or a cell would have fewer than 8 x 8 pixels.
    """
    smallest = 8 * GRID * max(SCALES)
    if rgb.ndim != 3 or len(rgb) != 3 or min(rgb.shape[1:]) < smallest:
        raise ValueError(
            f"rgb: expected [3, H, W], H and W at least {smallest}, got {list(rgb.shape)}"
        )
    features: dict[str, float] = {}
    for scale in SCALES:
        image = rgb.float() if scale == 1 else functional.avg_pool2d(rgb.float(), scale)
        for name, cells in _cell_statistics(image).items():
            features[f"{name}/{scale}/mean"] = float(cells.mean())
            features[f"{name}/{scale}/std"] = float(cells.std(correction=0))
    return features


def _cell_statistics(image: Tensor) -> dict[str, Tensor]:
    """Statistics [64] of the cells of an image [3, H, W]."""
    planes = _opponent_planes(image)
    normalised, _, contrast = quality_planes(planes)
    statistics = dict(_mscn_moments("luma", normalised[0]))
    for name, (down, right) in _NEIGHBOURS.items():
        neighbour = normalised[0].roll((-down, -right), dims=(0, 1))
        statistics |= _product_moments(name, _cells(normalised[0] * neighbour))
    for plane, own, local in zip(
        ("red-green", "blue-yellow"), planes[1:], contrast[1:], strict=True
    ):
        cells = _cells(own)
        statistics[f"{plane} mean"] = cells.mean(dim=1) / 255
        statistics[f"{plane} spread"] = cells.std(dim=1).log1p()
        statistics[f"{plane} contrast"] = _cells(local).mean(dim=1)
    luma, local = _cells(planes[0]), _cells(contrast[0])
    statistics["brightness"] = luma.mean(dim=1) / 255
    statistics["spread"] = luma.std(dim=1).log1p()
    statistics["contrast mean"] = local.mean(dim=1)
    statistics["contrast spread"] = local.std(dim=1)
    return statistics | _gradient_moments(planes[0])


def _opponent_planes(image: Tensor) -> Tensor:
    """Luma (BT.601), red-green and blue-yellow [3, H, W]."""
    red, green, blue = image
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([luma, red - green, blue - (red + green) / 2])


def _mscn_moments(name: str, plane: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Moments that fix a generalised Gaussian, and how far from symmetric the cell is."""
    cells = _cells(plane)
    power = cells.square().mean(dim=1) + 1e-6
    yield f"{name} mean", cells.mean(dim=1)
    yield f"{name} power", power.log()
    # E|x| / sqrt(E x^2) grows with the shape parameter: 0.71 for Laplace's, 0.80 for Gauss's.
    yield f"{name} shape", cells.abs().mean(dim=1) / power.sqrt()
    yield f"{name} skewness", cells.pow(3).mean(dim=1) / power.pow(1.5)
    yield f"{name} kurtosis", (cells.pow(4).mean(dim=1) / power.square()).log1p()


def _product_moments(direction: str, products: Tensor) -> dict[str, Tensor]:
    """Moments that fix an asymmetric generalised Gaussian of products of neighbours [64, n]."""
    positive, negative = (
        side.square().mean(dim=1) for side in (products.relu(), -(-products).relu())
    )
    power = products.square().mean(dim=1) + 1e-6
    return {
        f"{direction} mean": products.mean(dim=1),
        f"{direction} shape": products.abs().mean(dim=1) / power.sqrt(),
        f"{direction} asymmetry": (positive + 1e-6).log() - (negative + 1e-6).log(),
    }


def _gradient_moments(luma: Tensor) -> dict[str, Tensor]:
    down, right = luma.diff(dim=0)[:, :-1], luma.diff(dim=1)[:-1]
    gradient = _cells((down.square() + right.square()).sqrt())
    bend = _cells(luma.diff(n=2, dim=0)[:, 1:-1] + luma.diff(n=2, dim=1)[1:-1])
    return {
        "gradient mean": gradient.mean(dim=1).log1p(),
        "gradient spread": gradient.std(dim=1).log1p(),
        "Laplacian": bend.abs().mean(dim=1).log1p(),
    }


def _cells(plane: Tensor) -> Tensor:
    """Pixels [64, n] of the cells of a plane [H, W]; a remainder at the far edges is left out."""
    height, width = (side // GRID for side in plane.shape)
    cut = plane[: GRID * height, : GRID * width]
    return cut.reshape(GRID, height, GRID, width).transpose(1, 2).reshape(GRID * GRID, -1)


def read_image(path: Path) -> Tensor:
    """A photograph, uint8 [3, H, W].

    Raises:
        OSError: the file is missing or no image.
    """
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def write_table(
    path: Path, rows: list[Mapping[str, str]], features: list[dict[str, float]]
) -> None:
    """Names, scores, split and features of all images as one compressed file."""
    values = np.array([list(own.values()) for own in features])
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array([row["image_name"] for row in rows]),
            scores=np.array([float(row["mos"]) for row in rows], np.float32),
            is_test=np.array([row["split"] == "test" for row in rows]),
            feature_names=np.array(list(features[0])),
            features=values.astype(np.float16),
        )


def main(settings: Features) -> None:
    """Compute the features of every labelled image and write them."""
    with (settings.images_root / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    features = []
    with progress_bar("features", len(rows), "image") as bar:
        for row in rows:
            image = read_image(settings.images_root / "images" / row["image_name"])
            features.append(image_features(image))
            if not all(map(math.isfinite, features[-1].values())):
                raise ValueError(f"{row['image_name']}: a statistic is not finite")
            bar.update()
    write_table(settings.output, rows, features)
    print(f"{len(rows)} images, {len(features[0])} features each. Written: {settings.output}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Features, description=__doc__))
