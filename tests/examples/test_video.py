"""Video files: exact frames out, clear errors for files that cannot be used."""

import av
import numpy as np
import pytest
from video_files import (
    Stream,
    begin_later,
    blank_packets,
    decode_in_order,
    numbered_clip,
    textured_clip,
    turn,
    write_stream,
    write_video,
)

from vqa.io.encoding import decode, encode
from vqa.io.video import VideoError, VideoInfo, probe, read_frames


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


X264 = {"g": "10", "bf": "3"}
OPEN_GROUPS = {"x264-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:scenecut=0"}
UNEVEN = [0, 10, 50, 51, 90, 300, 310, 311, 312, 400] + [500 + 7 * t**2 for t in range(30)]
KINDS = {
    "mp4": Stream(options=X264),
    "fragmented mp4": Stream(
        options=X264, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "open groups of pictures": Stream(options=OPEN_GROUPS),
    "open groups of pictures in ts": Stream("mpegts", options=OPEN_GROUPS),
    "interlaced": Stream("mpegts", options={"x264-params": "keyint=10:tff=1"}),
    "mkv without a frame count": Stream("matroska", options=X264),
    "ts without a frame count": Stream("mpegts", options=X264),
    "flv": Stream("flv", options=X264),
    "times before zero, which are not presented": Stream(
        options=X264, times=[40 * t - 200 for t in range(40)]
    ),
    "first time is large": Stream(options=X264, times=[40 * t + 7000 for t in range(40)]),
    "variable frame rate": Stream(options=X264, times=UNEVEN),
    "variable frame rate in mkv": Stream("matroska", options=X264, times=UNEVEN),
    "audio first": Stream(options=X264, audio_first=True),
    "10 bit": Stream(options=X264, pixels="yuv420p10le"),
    "vp9": Stream("webm", "libvpx-vp9", {"g": "10"}),
    "vp8 with hidden frames": Stream(
        "webm", "libvpx", {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "hevc": Stream(
        codec="libx265", options={"x265-params": "keyint=10:open-gop=1:bframes=3:log-level=none"}
    ),
    "mpeg2": Stream("mpegts", "mpeg2video", {"g": "10", "bf": "2"}),
    "mpeg4": Stream(codec="mpeg4", options={"g": "10", "bf": "2"}),
    "avi without presentation times": Stream("avi", "mpeg4", {"g": "10", "bf": "2"}),
    "motion jpeg": Stream("avi", "mjpeg", pixels="yuvj420p"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_frame_numbers_are_those_of_decoding_everything(tmp_path, kind, threads):
    path = write_stream(tmp_path / "v", textured_clip(40), KINDS[kind])
    every = decode_in_order(path)
    random = np.random.default_rng(0)

    assert probe(path).frames == len(every) >= 35
    for wanted in ([len(every) - 1], [11, 12], range(5, 34, 2), random.permutation(35)[:7]):
        frames = read_frames(path, list(wanted), threads=threads).permute(1, 2, 3, 0)
        np.testing.assert_array_equal(frames, every[list(wanted)])


@pytest.mark.parametrize("cut", [1, 4, 13])
def test_frames_that_an_edit_list_cuts_away_do_not_count(tmp_path, cut):
    path = write_stream(tmp_path / "v.mp4", textured_clip(30), KINDS["mp4"])
    whole = decode_in_order(path)
    begin_later(path, cut * 512)

    assert probe(path).frames == 30 - cut
    np.testing.assert_array_equal(read_frames(path).permute(1, 2, 3, 0), whole[cut:])
    np.testing.assert_array_equal(
        read_frames(path, [0, 9, 16]).permute(1, 2, 3, 0), whole[[cut, cut + 9, cut + 16]]
    )


def test_only_what_a_wanted_frame_needs_is_decoded(tmp_path):
    path = write_stream(tmp_path / "v.mp4", textured_clip(40), KINDS["mp4"])
    every = decode_in_order(path)
    blank_packets(path, 1, 9)
    blank_packets(path, 20, 29)

    frames = read_frames(path, [12, 35]).permute(1, 2, 3, 0)

    np.testing.assert_array_equal(frames, every[[12, 35]])


def test_a_frame_that_needs_damaged_data_is_an_error_that_names_the_file(tmp_path):
    path = write_stream(tmp_path / "v.mp4", textured_clip(40), KINDS["mp4"])
    blank_packets(path, 20, 29)

    with pytest.raises(VideoError, match=r"v\.mp4: "):
        read_frames(path, [25])


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (1, 0, 0, 1)])
def test_frames_are_turned_as_phones_ask_for(tmp_path, matrix):
    path = write_stream(tmp_path / "v.mp4", textured_clip(12), KINDS["mp4"])
    stored = decode_in_order(path)
    turn(path, *matrix)
    with av.open(str(path)) as container:
        counterclockwise = next(container.decode(video=0)).rotation

    displayed = read_frames(path, [2, 11]).permute(1, 2, 3, 0)

    expected = np.rot90(stored[[2, 11]], counterclockwise // 90, axes=(1, 2))
    np.testing.assert_array_equal(displayed, expected)
    assert (probe(path).height, probe(path).width) == expected.shape[1:3]


def test_mirrored_frames_are_mirrored_back(tmp_path):
    path = write_stream(tmp_path / "v.mp4", textured_clip(3), KINDS["mp4"])
    stored = decode_in_order(path)
    turn(path, -1, 0, 0, 1)

    np.testing.assert_array_equal(read_frames(path).permute(1, 2, 3, 0), stored[:, :, ::-1])


def test_ten_bits_give_the_colours_of_eight(tmp_path):
    clip = np.broadcast_to(np.uint8([200, 90, 40]), (3, 48, 64, 3)).copy()
    eight = write_stream(tmp_path / "8.mp4", clip, Stream(options={"crf": "1"}))
    ten = write_stream(
        tmp_path / "10.mp4", clip, Stream(options={"crf": "1"}, pixels="yuv420p10le")
    )

    for path in (eight, ten):
        pixels = read_frames(path, [1]).permute(1, 2, 3, 0).numpy().astype(int)
        np.testing.assert_allclose(pixels, clip[[1]], atol=3)


@pytest.mark.parametrize(
    "kind", [Stream("webm", "libvpx-vp9"), Stream(pixels="yuv444p")], ids=["vp9", "h264"]
)
def test_odd_sizes_are_kept(tmp_path, kind):
    path = write_stream(tmp_path / "v", textured_clip(4, 35, 51), kind)

    assert read_frames(path, [3]).shape == (3, 1, 35, 51)
    np.testing.assert_array_equal(read_frames(path).permute(1, 2, 3, 0), decode_in_order(path))


def test_a_probe_tells_rate_size_and_duration(tmp_path):
    path = write_stream(tmp_path / "v.mp4", textured_clip(50), KINDS["mp4"])

    assert probe(path) == VideoInfo(50, 25.0, 48, 64, 2.0)


def test_frames_are_counted_where_times_begin_anew(tmp_path):
    parts = [
        write_stream(tmp_path / f"{seed}.ts", textured_clip(20, seed=seed), Stream("mpegts"))
        for seed in (1, 2)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    every = decode_in_order(joined)

    assert probe(joined).frames == len(every)
    np.testing.assert_array_equal(read_frames(joined, [3, 25]).permute(1, 2, 3, 0), every[[3, 25]])


def test_frames_that_change_their_size_are_an_error_that_names_the_file(tmp_path):
    parts = [
        write_stream(tmp_path / f"{h}.ts", textured_clip(20, h), Stream("mpegts")) for h in (48, 80)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))

    with pytest.raises(VideoError, match=r"joined\.ts: the size of the frames changes"):
        read_frames(joined)


@pytest.mark.parametrize(
    "kind",
    [Stream(container_options={"movflags": "faststart"}), KINDS["avi without presentation times"]],
    ids=["mp4", "avi"],
)
def test_frames_that_the_header_promises_and_the_file_lacks_are_an_error(tmp_path, kind):
    path = write_stream(tmp_path / "cut", textured_clip(40), kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])

    for use in (probe, read_frames):
        with pytest.raises(VideoError, match=r"cut: holds \d+ of 40 frames"):
            use(path)


@pytest.mark.parametrize("kind", ["mkv without a frame count", "ts without a frame count"])
def test_what_is_left_of_a_stream_without_a_frame_count_is_read(tmp_path, kind):
    path = write_stream(tmp_path / "v", textured_clip(40), KINDS[kind])
    every = decode_in_order(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    left = probe(path).frames

    assert 10 < left < 40
    np.testing.assert_array_equal(
        read_frames(path, [0, left - 3]).permute(1, 2, 3, 0), every[[0, left - 3]]
    )


def test_a_file_without_a_video_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))

    with pytest.raises(VideoError, match=r"sound\.wav: holds no video"):
        read_frames(path)


def test_at_least_one_thread_decodes(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered_clip(3))

    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        read_frames(path, [0], threads=0)
