"""Files of the wrong kind are refused by name.

A photograph is a video of one frame to a video decoder, which would give it a score.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from vqa.io.files import shown
from vqa.io.media_names import MediaKind, kind_by_name
from vqa.training.loader import Inputs, Read

# These may move, by Pillow's names and those of their files.
_MAY_MOVE = ("GIF", "PNG", "WEBP", "AVIF")
_MAY_MOVE_BY_NAME = (".gif", ".png", ".apng", ".webp", ".avif")
_OF_VIDEOS = ("MPEG",)


class KindError(ValueError):
    """A file holds an image where a video is wanted, or a video where an image is."""


def of_kind(kind: MediaKind, read: Read) -> Read:
    """The same reading of files of that kind; others are a `KindError`."""
    return partial(_read_video if kind == "video" else _read_image, read)


def _read_video(read: Read, path: Path, generator: torch.Generator | None) -> Inputs:
    if is_still_image(path):
        raise KindError(
            f"{shown(path)}: expected a video, found an image; a model for images scores it"
        )
    return read(path, generator)


def _read_image(read: Read, path: Path, generator: torch.Generator | None) -> Inputs:
    try:
        return read(path, generator)
    except ValueError as error:
        if kind_by_name(path) == "video":
            raise KindError(
                f"{shown(path)}: expected an image, found a video; a model for videos scores it"
            ) from error
        raise


def is_still_image(path: Path) -> bool:
    """Whether a file holds one picture, as photographs do, or pages that do not move."""
    if kind_by_name(path) == "image" and path.suffix.lower() not in _MAY_MOVE_BY_NAME:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                moves = image.format in _MAY_MOVE and bool(getattr(image, "is_animated", False))
                return image.format not in _OF_VIDEOS and not moves
    except Image.DecompressionBombError:
        return True
    except Exception:  # no image for Pillow, whose decoders raise whatever the damage leads to
        return False
