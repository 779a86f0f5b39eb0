"""Key frames and motion features of SimpleVQA: which frames, in what size, and kept how."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published_fill import fill
from torch.nn.functional import interpolate
from video_files import Stream, write_stream

from simple_vqa_features import PRESETS, main
from vqa.features.cache import FeatureCache, FeatureError, extract_features
from vqa.features.key_frames import (
    TINY,
    FeatureSettings,
    FrameDifferences,
    SlowFastFeatures,
    build_extractor,
    extract,
    plan,
)
from vqa.io.video import VideoError
from vqa.models import PublishedWeightsError, load_published
from vqa.models.slowfast import SlowFastR50
from vqa.synthetic.degradations import encode

SCRIPT = Path(__file__).parents[2] / "examples" / "simple_vqa_features.py"
SLOWFAST_KEYS = Path(__file__).parents[1] / "data" / "keys_slowfast_r50.json"
SMALL = FeatureSettings(
    key_frames=3, per_second=4, short_side=48, chunk=6, motion="frame_differences"
)
MEAN_AND_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def write_clip(path: Path, frames: int = 12, height: int = 48, width: int = 64) -> Path:
    """Frame t is grey of level 20 + 5 t with a ramp to the right; 24 frames per second."""
    levels = 20 + 5 * np.arange(frames)[:, None] + np.arange(width) // 8
    clip = np.broadcast_to(levels[:, None, :, None], (frames, height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(clip, "h264", quantiser=2, frame_rate=24))
    return path


class FrameLevels:
    """The mean grey level of every frame as "motion", which tells the frames of a chunk."""

    size = 16
    fingerprint = "levels"

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        assert clip.shape[1:] == (3, 16, 16)
        return clip.float().mean(dim=(1, 2, 3))


def repeated(items: list, count: int) -> list:
    return [*items, *[items[-1]] * count][:count]


@given(frames=st.integers(1, 700), rate=st.floats(0.6, 61), count=st.integers(1, 20))
def test_frames_are_those_of_the_published_loops(frames, rate, count):
    rounded = round(rate)
    key_frames = [number for number in range(frames) if number % rounded == 0]
    chunks = []
    for i in range(max(1, int(frames / rounded))):  # published: none for less than a second
        own = [number for number in range(i * rounded, i * rounded + 32) if number < frames]
        chunks.append(tuple(repeated(own, 32)))

    found = plan(frames, rate, FeatureSettings(key_frames=count))

    assert repeated(list(found.key_frames), count) == repeated(key_frames, count)
    assert repeated(list(found.chunks), count) == repeated(chunks, count)
    assert len(set(found.chunks)) == len(found.chunks)


def test_a_video_without_frame_rate_gives_its_beginning():
    found = plan(100, 0.0, FeatureSettings())

    assert found.key_frames == (0,)
    assert found.chunks == (tuple(range(32)),)


def test_a_constant_rate_is_counted_whatever_times_are_rounded_to():
    times = np.round(np.arange(300) * 1001 / 30000, 3)
    settings = FeatureSettings()

    assert plan(300, 30000 / 1001, settings, times) == plan(300, 30000 / 1001, settings)


@pytest.mark.parametrize("per_second", [1, 2])
def test_key_frames_of_a_variable_rate_are_those_shown_at_full_seconds(per_second):
    times = np.array([0.04 * t for t in range(25)] + [1 + 0.4 * t for t in range(28)])
    duration = times[-1] + 0.4
    moments = [k / per_second for k in range(30) if k / per_second < duration]
    shown = [max(n for n, t in enumerate(times) if t <= moment + 1e-9) for moment in moments]

    found = plan(53, 53 / duration, FeatureSettings(20, per_second), times)

    assert list(found.key_frames) == shown[:20]
    assert [chunk[0] for chunk in found.chunks] == shown[:20][: int(duration * per_second)]
    assert found.chunks[-1] == tuple(min(found.chunks[-1][0] + n, 52) for n in range(32))


def test_a_frame_that_is_shown_for_seconds_is_one_key_frame():
    found = plan(4, 0.4, FeatureSettings(), np.array([0.0, 1.0, 1.5, 9.0]))

    assert found.key_frames == (0, 1, 2, 3)


def test_key_frames_of_a_file_with_a_variable_rate_come_by_time(tmp_path):
    times = [40 * t for t in range(10)] + [400 * t for t in range(1, 11)]
    levels = 20 + 10 * np.arange(20, dtype=np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (20, 48, 64, 3)).copy()
    path = write_stream(tmp_path / "v.mkv", clip, Stream("matroska", "ffv1", times=times))

    features = extract(path, FeatureSettings(4, 1, 48, 6, "frame_differences"), FrameLevels())

    # At 0, 1 (the frame of 0.8), 2 and 3 (that of 2.8) seconds: frames 0, 11, 14 and 16.
    found = features.key_frames.float().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(found, levels[[0, 11, 14, 16]], atol=3)


def test_key_frames_are_the_wanted_frames_with_the_wanted_short_side(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=14)

    features = extract(path, FeatureSettings(3, 4, 24, 6, "frame_differences"), FrameLevels())

    assert features.key_frames.shape == (3, 3, 24, 32)
    levels = features.key_frames.float().mean(dim=(1, 2, 3)) - 3.5
    np.testing.assert_allclose(levels, [20, 50, 80], atol=1.5)


def test_a_chunk_begins_at_every_key_frame_and_repeats_the_last_frame(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=14)

    features = extract(path, FeatureSettings(3, 4, 24, 9, "frame_differences"), FrameLevels())

    frames = [list(range(9)), [6, 7, 8, 9, 10, 11, 12, 13, 13]]
    np.testing.assert_allclose(features.motion - 3.5, 20 + 5 * np.array(frames), atol=1.5)


def test_key_frames_are_resized_without_and_chunks_with_antialiasing(tmp_path):
    path = tmp_path / "v.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (96, 96, 1), dtype=np.uint8)
    path.write_bytes(encode(np.tile(texture, (6, 1, 1, 3)), "h264", 2, frame_rate=24))
    seen = []

    class Chunks(FrameLevels):
        def __call__(self, clip):
            seen.append(clip)
            return super().__call__(clip)

    whole, small = (
        extract(path, FeatureSettings(1, 1, side, 6, "frame_differences"), Chunks()).key_frames
        for side in (96, 24)
    )

    plain = interpolate(whole.float(), (24, 24), mode="bilinear")
    smooth = interpolate(whole.float(), (16, 16), mode="bilinear", antialias=True)
    # Bytes are resized in integers of few bits or in floats, as the processor likes it.
    torch.testing.assert_close(small.float(), plain, atol=1.5, rtol=0)
    torch.testing.assert_close(seen[0][:1].float(), smooth, atol=1.5, rtol=0)


def test_a_truncated_video_is_an_error_that_names_it(tmp_path):
    path = write_clip(tmp_path / "cut.mp4")
    path.write_bytes(path.read_bytes()[:-300])

    with pytest.raises(VideoError, match=r"cut\.mp4: "):
        extract(path, SMALL, FrameLevels())


def test_slowfast_sees_normalised_frames_in_order():
    class Echo(torch.nn.Module):
        def forward(self, clips):
            assert clips.shape == (1, 3, 32, 224, 224)
            return clips.mean(dim=(1, 3, 4))

    levels = 8 * torch.arange(32, dtype=torch.uint8)
    clip = levels.view(32, 1, 1, 1).expand(32, 3, 224, 224)

    found = SlowFastFeatures(Echo(), torch.device("cpu"))(clip)

    torch.testing.assert_close(found, (levels / 255 - 0.45) / 0.225)


def test_slowfast_is_told_apart_by_its_weights_not_by_their_file(tmp_path):
    weights, network = fill(SLOWFAST_KEYS), SlowFastR50()
    torch.save({"model_state": weights}, tmp_path / "w.pyth")
    load_published(network, weights)

    from_file = build_extractor("slowfast_r50", tmp_path / "w.pyth").fingerprint
    from_memory = SlowFastFeatures(network, torch.device("cpu")).fingerprint
    network.blocks[4].multipathway_blocks[1].res_blocks[2].branch2.norm_c.bias += 1e-3

    assert from_file == from_memory
    assert SlowFastFeatures(network, torch.device("cpu")).fingerprint != from_memory


def test_slowfast_needs_published_weights(tmp_path):
    with pytest.raises(ValueError, match="slowfast_weights: expected a file of the published"):
        build_extractor("slowfast_r50")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(PublishedWeightsError, match=r"other\.pth: expected weights for SlowFast"):
        build_extractor("slowfast_r50", tmp_path / "other.pth")


def test_frame_differences_need_no_weights(tmp_path):
    with pytest.raises(ValueError, match="slowfast_weights: expected none for frame_differences"):
        build_extractor("frame_differences", tmp_path / "w.pth")


def test_a_frozen_clip_has_no_differences_but_still_pairs():
    clip = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8).expand(7, 3, 8, 8)

    by_lag = FrameDifferences()(clip).view(3, 5)

    torch.testing.assert_close(by_lag, torch.tensor([0.0, 0, 0, 0, 1]).expand(3, 5))


def test_a_steady_fade_changes_in_proportion_to_the_distance_of_frames():
    levels = 200 - 3 * torch.arange(8)
    clip = levels.view(8, 1, 1, 1).expand(8, 3, 8, 8).to(torch.uint8)

    by_lag = FrameDifferences()(clip).view(3, 5)

    change = torch.log1p(3.0 * torch.tensor([1, 2, 4]))
    torch.testing.assert_close(by_lag[:, 0], change)
    torch.testing.assert_close(by_lag[:, 2], -change)
    torch.testing.assert_close(by_lag[:, [1, 3, 4]], torch.zeros(3, 3), atol=1e-4, rtol=0)


def test_a_chunk_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="expected at least 6 frames, got 5"):
        FrameDifferences()(torch.zeros(5, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected \[B, 3, 32, 224, 224\], got \[1, 3, 31, "):
        SlowFastFeatures(SlowFastR50(), torch.device("cpu"))(torch.zeros(31, 3, 224, 224))


@pytest.mark.parametrize("name", ["key_frames", "per_second", "short_side", "chunk"])
def test_settings_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        FeatureSettings(**{name: 0})


def test_slowfast_has_chunks_of_32_frames():
    with pytest.raises(ValueError, match="chunk: expected 32 for slowfast_r50, got 16"):
        FeatureSettings(chunk=16)


@pytest.fixture
def video(tmp_path):
    return write_clip(tmp_path / "videos" / "v.mp4")


@pytest.fixture
def cache(tmp_path, video):
    return extract_features([video], tmp_path / "features", SMALL).cache


def test_what_is_read_is_what_was_extracted_with_the_last_repeated(cache, video):
    extracted = extract(video, SMALL, FrameDifferences())

    frames, motion = cache.read(video, None, crop=48)

    mean, deviation = np.array(MEAN_AND_DEVIATION)
    middle = extracted.key_frames[:, :, :, 8:56].permute(0, 2, 3, 1).numpy()
    expected = torch.from_numpy((middle / 255 - mean) / deviation).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(frames, expected[[0, 1, 1]])
    torch.testing.assert_close(motion, extracted.motion[[0, 1, 1]], rtol=0, atol=0)


def test_random_crops_come_from_the_generator_alone_and_differ_from_frame_to_frame(tmp_path):
    path = tmp_path / "v.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path.write_bytes(encode(np.tile(texture, (6, 1, 1, 1)), "h264", 2, frame_rate=24))
    cache = extract_features([path], tmp_path / "features", SMALL).cache
    whole = extract(path, SMALL, FrameDifferences()).key_frames[0]

    frames, _ = cache.read(path, torch.Generator().manual_seed(3), crop=16)
    again, _ = cache.read(path, torch.Generator().manual_seed(3), crop=16)

    torch.testing.assert_close(frames, again, rtol=0, atol=0)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in MEAN_AND_DEVIATION)
    pixels = (255 * (frames * deviation + mean)).round().to(torch.uint8)
    windows = whole.unfold(1, 16, 1).unfold(2, 16, 1)
    places = [
        (windows == frame[:, None, None]).all(-1).all(-1).all(0).nonzero() for frame in pixels
    ]
    assert [len(place) for place in places] == [1, 1, 1]
    assert len({tuple(place[0].tolist()) for place in places}) == 3


def test_a_crop_beyond_the_key_frames_is_an_error(cache, video):
    with pytest.raises(ValueError, match=r"crop: expected at most the 48 pixels .* got 49"):
        cache.read(video, None, crop=49)


def test_a_changed_video_has_no_features(cache, video):
    write_clip(video, frames=13)

    assert not cache.has(video)
    with pytest.raises(FeatureError, match=r"v\.mp4: has no features .* or was changed"):
        cache.read(video, None, crop=48)


@pytest.mark.parametrize("place", [10, 50_000, -10])
def test_a_changed_byte_at_either_end_or_in_the_middle_is_noticed(tmp_path, place):
    cache = FeatureCache.create(tmp_path / "features", SMALL, "levels")
    video = tmp_path / "v.mp4"
    video.write_bytes(bytes(100_000))
    cache.write(video, extract(write_clip(tmp_path / "w.mp4"), SMALL, FrameLevels()))
    assert cache.has(video)

    changed = bytearray(video.read_bytes())
    changed[place] = 1
    video.write_bytes(changed)

    assert not cache.has(video)


def test_a_changed_byte_anywhere_is_noticed_by_the_time_of_change(tmp_path):
    cache = FeatureCache.create(tmp_path / "features", SMALL, "levels")
    video = tmp_path / "v.mp4"
    video.write_bytes(bytes(1_000_000))
    os.utime(video, (1, 1))
    cache.write(video, extract(write_clip(tmp_path / "w.mp4"), SMALL, FrameLevels()))
    assert cache.has(video)

    with video.open("r+b") as file:
        file.seek(300_000)  # in none of the pieces that are read
        file.write(b"other")

    assert not cache.has(video)


def test_a_moved_video_keeps_its_features(cache, video):
    frames, _ = cache.read(video, None, crop=48)
    elsewhere = video.rename(video.parent.parent / video.name)

    torch.testing.assert_close(cache.read(elsewhere, None, crop=48)[0], frames)


def test_other_settings_do_not_find_the_features(cache, video):
    other = FeatureSettings(3, 4, 40, 6, "frame_differences")

    assert not FeatureCache.create(cache.folder, other, cache.motion).has(video)
    assert not FeatureCache.create(cache.folder, SMALL, "other weights").has(video)
    assert FeatureCache.create(cache.folder, SMALL, cache.motion).has(video)


def test_a_cache_is_opened_with_the_settings_it_was_made_with(cache):
    assert FeatureCache.open(cache.folder) == cache


def test_a_folder_without_features_is_an_error(tmp_path):
    with pytest.raises(FeatureError, match=r"gone: expected features made by"):
        FeatureCache.open(tmp_path / "gone")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")

    with pytest.raises(FeatureError, match="expected features or an empty folder"):
        FeatureCache.create(tmp_path, SMALL, "levels")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_entry_is_an_error_that_names_it(cache, video):
    (entry,) = cache.folder.glob("*.zip")
    content = bytearray(entry.read_bytes())
    content[200] ^= 255
    entry.write_bytes(content)

    with pytest.raises(FeatureError, match=rf"{entry.name}: is damaged"):
        cache.read(video, None, crop=48)


def test_an_entry_under_the_name_of_another_is_an_error(cache, video):
    other = write_clip(video.with_name("v2.mp4"), frames=13)
    extract_features([other], cache.folder, SMALL)
    wrong, right = (next(cache.folder.glob(f"{name}-*.zip")) for name in ("v2", "v"))
    wrong.replace(right)

    with pytest.raises(FeatureError, match="is of another video"):
        cache.read(video, None, crop=48)


@pytest.mark.parametrize("name", ["\u89c6" * 78, "x" * 251, "\udce9"], ids=ascii)
def test_a_video_of_any_name_has_features(tmp_path, name):
    video = write_clip(tmp_path / "v.mp4").rename(tmp_path / f"{name}.mp4")

    done = extract_features([video], tmp_path / "features", SMALL)

    assert done.extracted == 1
    assert done.cache.read(video, None, crop=32)[0].shape == (3, 3, 32, 32)


def test_only_what_is_missing_is_extracted(cache, video):
    other = write_clip(video.with_name("w.mp4"), frames=13)

    done = extract_features([video, other, other], cache.folder, SMALL)

    assert (done.extracted, done.reused, done.bad_files) == (1, 1, ())


def test_a_bad_video_stops_the_extraction_and_is_named(cache, video):
    (video.parent / "bad.mp4").write_text("not a video")

    with pytest.raises(VideoError, match=r"bad\.mp4: cannot be decoded"):
        extract_features([video.parent / "bad.mp4"], cache.folder, SMALL)


def test_bad_and_missing_videos_are_left_out_and_counted_if_asked(cache, video):
    (video.parent / "bad.mp4").write_text("not a video")
    videos = [video.parent / name for name in ("bad.mp4", "gone.mp4", "v.mp4")]

    done = extract_features(videos, cache.folder, SMALL, skip_bad_files=True)

    assert (done.extracted, done.reused) == (0, 1)
    assert ["bad.mp4" in done.bad_files[0], "gone.mp4" in done.bad_files[1]] == [True, True]


@pytest.mark.slow
def test_the_command_survives_a_kill_and_goes_on_with_the_same_result(tmp_path):
    names = [f"v{number:02d}.mp4" for number in range(40)]
    for number, name in enumerate(names):
        write_clip(tmp_path / name, frames=12 + number)
    (tmp_path / "labels.txt").write_text("".join(f"{name}, -1, -1, 1\n" for name in names))
    place = ["--dataset", "list", "--data-root", str(tmp_path), "--processes", "2"]
    command = [sys.executable, str(SCRIPT), "tiny", *place, "--output", str(tmp_path / "killed")]

    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while len(list(tmp_path.glob("killed/v*.zip"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=600)  # returns when no worker holds the pipe any more

    videos = [tmp_path / name for name in names]
    whole = extract_features(videos, tmp_path / "whole", TINY)
    resumed = extract_features(videos, tmp_path / "killed", TINY)
    assert resumed.reused >= 3
    assert resumed.extracted + resumed.reused == 40
    for path in videos:
        for one, other in zip(
            *(done.cache.read(path, None, crop=112) for done in (whole, resumed)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_command_leaves_out_bad_videos_and_says_so(tmp_path, capsys):
    write_clip(tmp_path / "v.mp4")
    (tmp_path / "bad.mp4").write_text("not a video")
    (tmp_path / "labels.txt").write_text("v.mp4, -1, -1, 1\nbad.mp4, -1, -1, 1\n")
    _, tiny = PRESETS["tiny"]

    main(
        replace(
            tiny,
            output=tmp_path / "features",
            dataset="list",
            data_root=tmp_path,
            bad_files="skip",
            processes=1,
        )
    )

    said = capsys.readouterr().out
    assert "features of 1 videos extracted, 0 reused" in said
    assert f"left out: {tmp_path / 'bad.mp4'}: cannot be decoded" in said
