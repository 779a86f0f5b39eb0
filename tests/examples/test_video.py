"""Video files: exact frames out, clear errors for files that cannot be used."""

import numpy as np
import pytest
from video_files import numbered_clip, textured_clip, write_video

from vqa.encoding import decode, encode
from vqa.video import VideoError, read_frames


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_exactly_the_wanted_frames_come_in_the_wanted_order(tmp_path, codec):
    path = write_video(tmp_path / "v.mp4", numbered_clip(6), codec, quantiser=2)

    frames = read_frames(path, [4, 1, 1])

    assert frames.shape == (3, 3, 48, 64)
    np.testing.assert_allclose(frames.float().mean((0, 2, 3)), [140, 50, 50], atol=3)


def test_all_frames_are_read_by_default(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered_clip(6))

    assert read_frames(path).shape == (3, 6, 48, 64)


def test_grey_frames_have_one_channel(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered_clip(3))

    assert read_frames(path, pixels="gray").shape == (1, 3, 48, 64)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_encoding_twice_gives_the_same_bytes(codec):
    clip = textured_clip()

    assert len({encode(clip, codec, 20, 24) for _ in range(5)}) == 1


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_a_larger_quantiser_is_a_smaller_and_worse_file(codec):
    clip = textured_clip()
    fine, coarse = (encode(clip, codec, quantiser, 24) for quantiser in (4, 30))
    errors = [np.abs(decode(file).astype(int) - clip).mean() for file in (fine, coarse)]

    assert len(coarse) < len(fine)
    assert errors[1] > errors[0]


def test_a_missing_video_is_an_error_that_names_it(tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4: cannot be decoded"):
        read_frames(tmp_path / "gone.mp4")


def test_a_truncated_video_is_an_error_that_names_it(tmp_path):
    path = write_video(tmp_path / "cut.mp4", textured_clip())
    path.write_bytes(path.read_bytes()[:-900])

    with pytest.raises(VideoError, match=r"cut\.mp4: "):
        read_frames(path)


def test_a_video_whose_data_ends_early_is_an_error_that_names_it(tmp_path):
    whole = write_video(tmp_path / "v.mp4", textured_clip(12)).read_bytes()
    begin = whole.index(b"mdat") + 4
    damaged = whole[: begin + 200] + bytes(whole.index(b"moov") - begin - 204)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(damaged + whole[whole.index(b"moov") - 4 :])

    with pytest.raises(VideoError, match=r"damaged\.mp4: "):
        read_frames(path)


def test_a_file_that_is_no_video_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("not a video")

    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded"):
        read_frames(path)


def test_a_frame_beyond_the_end_is_an_error_that_names_file_and_frame(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered_clip(3))

    with pytest.raises(VideoError, match=r"v\.mp4: frame 7 is missing"):
        read_frames(path, [0, 7])


@pytest.mark.parametrize("indices", [[], [-1]])
def test_frame_numbers_start_at_zero(tmp_path, indices):
    path = write_video(tmp_path / "v.mp4", numbered_clip(3))

    with pytest.raises(ValueError, match="expected frame numbers from 0"):
        read_frames(path, indices)
