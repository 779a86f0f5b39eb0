"""A folder of extracted features: one file per video, complete or absent, checked when read.

`features.json` says how the features of the folder were made. An entry is a zip archive of
`key_frame_0.png` ..., `motion.npy` and `record.json`, named after the video's time of change and
content, the settings and the extractor with its weights; so an entry is found as long as none of
them has changed, also when the video was moved.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Generator, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from vqa.features.key_frames import Features, FeatureSettings, MotionKind, build_extractor, extract
from vqa.io.files import digest, replacing, shown, write_json
from vqa.io.video import VideoError
from vqa.models.imagenet import normalise
from vqa.processes import process_pool, progress_bar

# To be raised when the same video and settings would give another entry.
VERSION = 2

MANIFEST = "features.json"
_PIECE = 1 << 16
# File systems take 255 bytes, and there is more to a name.
_NAME_BYTES = 160

# Of an extractor: kind, published weights, device.
_MadeOf = tuple[MotionKind, Path | None, torch.device]
_built_once = lru_cache(maxsize=1)(build_extractor)  # by each process, for all its videos


class FeatureError(ValueError):
    """Features are missing, out of date or damaged; the message says of which file."""


@dataclass(frozen=True)
class FeatureCache:
    """Features of videos, all made the same way. Use `create` or `open`."""

    folder: Path
    settings: FeatureSettings
    motion: str  # fingerprint of the motion extractor

    @classmethod
    def create(cls, folder: Path, settings: FeatureSettings, motion: str) -> FeatureCache:
        """The cache in `folder` for features made this way; other ones there are not used."""
        cache = cls(folder, settings, motion)
        made_by_us = (folder / MANIFEST).exists()
        if folder.exists() and not made_by_us and any(folder.iterdir()):
            raise FeatureError(f"{folder}: expected features or an empty folder, found other files")
        write_json(folder / MANIFEST, cache.made())
        return cache

    @classmethod
    def open(cls, folder: Path) -> FeatureCache:
        """The cache that an extraction made in `folder`."""
        try:
            made = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            cache = cls(folder, FeatureSettings(**made["settings"]), made["motion"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeatureError(
                f"{folder}: expected features made by simple_vqa_features.py ({error})"
            ) from error
        if made != cache.made():
            raise FeatureError(f"{folder}: expected features of version {VERSION}; extract again")
        return cache

    def has(self, video: Path) -> bool:
        """Whether there is an entry for the video as it is now; none if it cannot be read."""
        try:
            return self._entry(video)[0].exists()
        except FeatureError:
            return False

    def write(self, video: Path, features: Features) -> None:
        entry, record = self._entry(video)
        with replacing(entry) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
            for number, frame in enumerate(features.key_frames):
                with archive.open(f"key_frame_{number}.png", "w") as file:
                    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(file, "png")
            with archive.open("motion.npy", "w") as file:
                np.save(file, features.motion.numpy())
            archive.writestr("record.json", json.dumps(record))

    def read(
        self, video: Path, generator: torch.Generator | None, crop: int
    ) -> tuple[Tensor, Tensor]:
        """What SimpleVQA takes for one video, whose content must be what it was at the extraction.

        `cropped` key frames float32 [N, 3, crop, crop] and motion features float32 [N, M]; N is the
        settings' `key_frames`.
        """
        entry, record = self._entry(video)
        try:
            with zipfile.ZipFile(entry) as archive:
                intact = json.loads(archive.read("record.json")) == record
                motion = np.load(io.BytesIO(archive.read("motion.npy")), allow_pickle=False)
                names = [name for name in archive.namelist() if name.endswith(".png")]
                images = [Image.open(io.BytesIO(archive.read(name))) for name in names]
                key_frames = [torch.from_numpy(np.array(own)).permute(2, 0, 1) for own in images]
        except FileNotFoundError as error:
            raise FeatureError(
                f"{shown(video)}: has no features in {self.folder}, or was changed since they were"
                " extracted; run simple_vqa_features.py"
            ) from error
        except Exception as error:  # zip, zlib, numpy and Pillow have their own each
            raise FeatureError(
                f"{shown(entry)}: is damaged, delete it and extract again"
            ) from error
        if not intact:
            raise FeatureError(f"{shown(entry)}: is of another video, delete it and extract again")
        count = self.settings.key_frames
        return cropped(key_frames, count, generator, crop), filled(torch.from_numpy(motion), count)

    def _entry(self, video: Path) -> tuple[Path, dict[str, object]]:
        """The file of a video's features, and all that they depend on."""
        record = {**self.made(), "video": fingerprint(video)}
        # For people only, so the beginning will do.
        stem = os.fsencode(video.stem)[:_NAME_BYTES].decode("utf-8", "ignore")
        return self.folder / f"{stem}-{digest(record)[:32]}.zip", record

    def made(self) -> dict[str, Any]:
        """How the features were made, as plain values."""
        return {"version": VERSION, "settings": asdict(self.settings), "motion": self.motion}


def cropped(
    key_frames: Sequence[Tensor], count: int, generator: torch.Generator | None, crop: int
) -> Tensor:
    """So many of the key frames, uint8 [3, H, W], as float32 [count, 3, crop, crop], normalised.

    The last is repeated where there are fewer. The generator draws the place of every crop, also of
    repeated ones; without one it is the centre.
    """
    numbers = torch.arange(count).clamp(max=len(key_frames) - 1)
    return normalise(torch.stack([_crop(key_frames[n], crop, generator) for n in numbers.tolist()]))


def filled(motion: Tensor, count: int) -> Tensor:
    """Motion features [count, M] of the distinct chunks' [C, M]; the last ones are repeated."""
    return motion[torch.arange(count).clamp(max=len(motion) - 1)]


def fingerprint(video: Path) -> str:
    """Time of change, size, and SHA-256 of beginning, middle and end (64 KiB each) of a file.

    Cheap enough for every reading in training. A change anywhere in the file shows in the time; of
    two files of one time and size, the index of all frame sizes at one of a container's ends tells
    which it is.
    """
    pieces = hashlib.sha256()
    try:
        with video.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            changed = os.fstat(file.fileno()).st_mtime_ns
            for place in (0, (size - _PIECE) // 2, size - _PIECE):
                file.seek(max(0, place))
                pieces.update(file.read(_PIECE))
    except OSError as error:
        raise FeatureError(f"{shown(video)}: cannot be read ({error.strerror})") from error
    return f"{changed} {size} {pieces.hexdigest()}"


def _crop(frame: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    slack = [length - size for length in frame.shape[1:]]
    if min(slack) < 0:
        raise ValueError(
            f"crop: expected at most the {min(frame.shape[1:])} pixels of a key frame's short side,"
            f" got {size}"
        )
    if generator is None:
        centre: Tensor = functional.center_crop(frame, [size, size])
        return centre
    top, left = (int(torch.randint(each + 1, (1,), generator=generator)) for each in slack)
    return frame[:, top : top + size, left : left + size]


class Extraction(NamedTuple):
    """How many videos were extracted, how many were there; what is wrong with those left out."""

    cache: FeatureCache
    extracted: int
    reused: int
    bad_files: tuple[str, ...]


def extract_features(
    videos: Sequence[Path],
    folder: Path,
    settings: FeatureSettings,
    slowfast_weights: Path | None = None,
    processes: int = 1,
    device: str = "cpu",
    skip_bad_files: bool = False,
) -> Extraction:
    """Extract what is not in the cache yet; every finished video stays, whatever stops the run.

    Of several processes each works on one video at a time on one thread; a single one may use all
    of torch's. But for rounding the result does not depend on it.
    """
    made_of = (settings.motion, slowfast_weights, torch.device(device))
    cache = FeatureCache.create(folder, settings, _built_once(*made_of).fingerprint)
    distinct = list(dict.fromkeys(videos))
    missing = [video for video in distinct if not cache.has(video)]
    reused = len(distinct) - len(missing)
    bad_files: list[str] = []
    if processes > 1 and len(missing) > 1:
        done = _in_parallel(missing, cache, made_of, processes)
    else:
        done = (_extract_one(video, cache, made_of) for video in missing)
    with (
        progress_bar("features", len(distinct), "video", initial=reused) as bar,
        closing(done),  # at an error no further video is begun
    ):
        for error in done:
            if error is not None and not skip_bad_files:
                raise VideoError(error)
            bad_files += [] if error is None else [error]
            bar.update()
    return Extraction(cache, len(missing) - len(bad_files), reused, tuple(bad_files))


def _extract_one(video: Path, cache: FeatureCache, made_of: _MadeOf) -> str | None:
    """What is wrong with the video; None if its features are in the cache now."""
    try:
        cache.write(video, extract(video, cache.settings, _built_once(*made_of)))
    except (VideoError, FeatureError) as error:
        return str(error)
    return None


def _in_parallel(
    videos: Sequence[Path], cache: FeatureCache, made_of: _MadeOf, processes: int
) -> Generator[str | None, None, None]:
    with process_pool(processes) as pool:
        jobs = [pool.submit(_extract_one, video, cache, made_of) for video in videos]
        for future in as_completed(jobs):
            yield future.result()
