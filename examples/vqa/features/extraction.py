"""Extract the features of many videos: in parallel, and going on where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from vqa.features.cache import FeatureCache, FeatureError
from vqa.features.key_frames import FeatureSettings, extract
from vqa.features.motion import MotionExtractor, build_extractor
from vqa.io.video import VideoError
from vqa.processes import process_pool
from vqa.progress import progress_bar


@dataclass(frozen=True)
class Extraction:
    """What came of it."""

    cache: FeatureCache
    extracted: int
    """Videos whose features were extracted now."""
    reused: int
    """Videos whose features were there."""
    bad_files: tuple[str, ...]
    """What is wrong with the videos that were left out."""


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

    Args:
        videos: the videos; one that is listed twice is extracted once.
        folder: the cache, made if it is not there.
        settings: what is read from every video.
        slowfast_weights: published `slowfast_r50` weights, where the settings ask for them.
        processes: how many videos are worked on at a time, each on one thread; a single one may use
            all of torch's. But for rounding the result does not depend on it.
        device: where the motion network runs.
        skip_bad_files: leave out videos that cannot be read instead of stopping.

    Raises:
        VideoError: a video is missing or cannot be read; names it.
        FeatureError: the folder holds something else.
        ValueError: the weights are missing or not needed.
    """
    extractor = build_extractor(settings.motion, slowfast_weights, torch.device(device))
    cache = FeatureCache.create(folder, settings, extractor.identity)
    distinct = list(dict.fromkeys(videos))
    bad_files: list[str] = []
    with progress_bar("features", len(distinct), "video") as bar:
        missing: list[Path] = []
        for video in distinct:
            if _is_there(cache, video):
                bar.update()
            else:
                missing.append(video)
        if processes > 1 and len(missing) > 1:
            done = _in_parallel(missing, cache, slowfast_weights, processes, device)
        else:
            done = (_extract_one(video, cache, extractor) for video in missing)
        with closing(done):  # at an error no further video is begun
            for error in done:
                if error is not None and not skip_bad_files:
                    raise VideoError(error)
                bad_files += [] if error is None else [error]
                bar.update()
    extracted, reused = len(missing) - len(bad_files), len(distinct) - len(missing)
    return Extraction(cache, extracted, reused, tuple(bad_files))


def _is_there(cache: FeatureCache, video: Path) -> bool:
    try:
        return cache.has(video)
    except FeatureError:  # the extraction will say what is wrong with the video
        return False


def _extract_one(video: Path, cache: FeatureCache, extractor: MotionExtractor) -> str | None:
    """What is wrong with the video; None if its features are in the cache now."""
    try:
        cache.write(video, extract(video, cache.settings, extractor))
    except (VideoError, FeatureError) as error:
        return str(error)
    return None


def _in_parallel(
    videos: Sequence[Path],
    cache: FeatureCache,
    slowfast_weights: Path | None,
    processes: int,
    device: str,
) -> Generator[str | None, None, None]:
    held = (cache, slowfast_weights, device)
    with process_pool(processes, _start_worker, held) as pool:
        for future in as_completed([pool.submit(_work, video) for video in videos]):
            yield future.result()


class _Worker:
    """What a worker process holds between its videos."""

    cache: FeatureCache
    extractor: MotionExtractor


def _start_worker(cache: FeatureCache, slowfast_weights: Path | None, device: str) -> None:
    _Worker.cache = cache
    _Worker.extractor = build_extractor(
        cache.settings.motion, slowfast_weights, torch.device(device)
    )


def _work(video: Path) -> str | None:
    return _extract_one(video, _Worker.cache, _Worker.extractor)
