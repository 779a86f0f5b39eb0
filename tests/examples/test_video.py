"""Video files: exact frames out, clear errors for files that cannot be used."""

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from video_files import (
    Stream,
    begin_later,
    blank_packets,
    cut,
    decode_in_order,
    join_tracks,
    numbered_clip,
    probe,
    textured_clip,
    turn,
    write_stream,
    write_video,
)

from vqa.io.video import VideoError, VideoInfo, read_frames
from vqa.synthetic.degradations import decode, encode


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
def test_frame_numbers_are_those_of_decoding_everything(tmp_path, kind):
    path = write_stream(tmp_path / "v", textured_clip(40), KINDS[kind])
    every = decode_in_order(path)
    random = np.random.default_rng(0)

    assert probe(path).frames == len(every) >= 35
    for wanted in ([len(every) - 1], [11, 12], range(5, 34, 2), random.permutation(35)[:7]):
        frames = read_frames(path, list(wanted)).permute(1, 2, 3, 0)
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
    [
        Stream(container_options={"movflags": "faststart"}),
        KINDS["avi without presentation times"],
        KINDS["motion jpeg"],
        KINDS["mkv without a frame count"],
        KINDS["variable frame rate in mkv"],
        KINDS["vp9"],
        KINDS["vp8 with hidden frames"],
        KINDS["flv"],
    ],
    ids=[
        "mp4",
        "avi",
        "motion jpeg",
        "mkv",
        "variable rate mkv",
        "webm",
        "vp8",
        "flv",
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_the_header_promises_and_the_file_lacks_is_an_error(tmp_path, kind, share):
    path = cut(write_stream(tmp_path / "cut", textured_clip(40), kind), share)

    for use in (probe, read_frames):
        with pytest.raises(VideoError, match=r"cut: holds .* the file is truncated"):
            use(path)


@pytest.mark.parametrize(
    ("part", "behind_name"), [("moof", 0), ("moof", 60), ("mdat", -2), ("mdat", 0), ("mdat", 60)]
)
def test_an_end_within_a_fragment_of_an_mp4_file_is_an_error(tmp_path, part, behind_name):
    path = write_stream(tmp_path / "cut", textured_clip(40), KINDS["fragmented mp4"])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(part.encode()) + 4 + behind_name])

    for use in (probe, read_frames):
        with pytest.raises(VideoError, match=r"cut: holds .* the file is truncated"):
            use(path)


@pytest.mark.parametrize("fragments", [{}, KINDS["fragmented mp4"].container_options])
@pytest.mark.parametrize("more", [b"\0" * 3, b"\0" * 40, b"padding at the end of a file"])
def test_other_bytes_behind_an_mp4_file_do_not_matter(tmp_path, fragments, more):
    path = write_stream(tmp_path / "v", textured_clip(20), Stream(container_options=fragments))
    path.write_bytes(path.read_bytes() + more)

    assert probe(path).frames == 20


def test_what_is_left_of_a_stream_that_announces_nothing_is_read(tmp_path):
    path = write_stream(tmp_path / "v", textured_clip(40), KINDS["ts without a frame count"])
    every = decode_in_order(path)
    cut(path, 0.7)
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


@pytest.mark.parametrize("container", ["avi", "mp4", "matroska"])
def test_titles_in_another_encoding_are_of_no_interest(tmp_path, container):
    kind = Stream(container, metadata={"title": "caf\xe9"}, metadata_encoding="latin-1")
    path = write_stream(tmp_path / "v", textured_clip(5), kind)

    assert probe(path).frames == 5
    assert read_frames(path).shape == (3, 5, 48, 64)


def test_a_codec_without_a_decoder_is_an_error_that_names_the_file(tmp_path):
    path = write_stream(tmp_path / "v.mp4", textured_clip(5), KINDS["mp4"])
    path.write_bytes(path.read_bytes().replace(b"avc1", b"drmi"))

    for use in (probe, read_frames):
        with pytest.raises(VideoError, match=r"v\.mp4: cannot be decoded \(no decoder"):
            use(path)


@pytest.mark.parametrize("error", [AttributeError, IndexError, MemoryError, ValueError])
def test_whatever_a_decoder_raises_is_an_error_that_names_the_file(tmp_path, monkeypatch, error):
    path = write_video(tmp_path / "v.mp4", numbered_clip(3))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("av.open", fail)

    with pytest.raises(VideoError, match=rf"v\.mp4: cannot be decoded \({error.__name__}\)"):
        probe(path)


@pytest.mark.parametrize(
    "name", ["a: b.mp4", "a%03d.mp4", "http:x.mp4", "two\nlines.mp4", "\udce9"]
)
def test_any_name_can_be_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = write_stream(tmp_path / "v", textured_clip(3), KINDS["mp4"]).rename(tmp_path / name)

    assert probe(path.relative_to(tmp_path)).frames == 3


def test_a_name_that_cannot_be_printed_is_escaped_in_errors(tmp_path):
    path = tmp_path / "two\nlines \udce9.mp4"
    path.touch()

    with pytest.raises(VideoError, match=r"two\\nlines \\udce9\.mp4: cannot be decoded"):
        probe(path)


WITH_GAPS = Stream(
    "avi", "mjpeg", pixels="yuvj420p", times=[40 * t for t in range(20) if t % 7 != 3]
)


def test_empty_chunks_of_an_avi_are_no_frames(tmp_path):
    path = write_stream(tmp_path / "v.avi", textured_clip(17), WITH_GAPS)
    every = decode_in_order(path)

    assert probe(path) == VideoInfo(17, 17 / 0.8, 48, 64, 0.8)
    np.testing.assert_array_equal(read_frames(path).permute(1, 2, 3, 0), every)


def test_pictures_of_a_gif_that_no_delay_lets_be_seen_are_no_frames(tmp_path):
    first, *others = [Image.fromarray(pixels) for pixels in textured_clip(8)]
    first.save(tmp_path / "v.gif", save_all=True, append_images=others)

    assert probe(tmp_path / "v.gif").frames == len(decode_in_order(tmp_path / "v.gif")) == 1


def test_h264_copied_into_an_avi_has_the_frames_that_it_had(tmp_path):
    source = write_stream(tmp_path / "v.mp4", textured_clip(40), KINDS["mp4"])
    path = join_tracks(tmp_path / "v.avi", [source], [Disposition.default])

    assert probe(path) == VideoInfo(40, 25.0, 48, 64, 1.6)
    np.testing.assert_array_equal(
        read_frames(path, [0, 21, 39]).permute(1, 2, 3, 0), decode_in_order(source)[[0, 21, 39]]
    )


def test_sound_may_last_longer_than_the_pictures(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        video, audio = (
            container.add_stream("mpeg4", rate=25),
            container.add_stream("aac", rate=8000),
        )
        video.height, video.width = 48, 64
        for pixels in textured_clip(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 1024 * number
            container.mux(audio.encode(frame))
        container.mux(audio.encode())

    assert probe(path).frames == 10


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_of_two_tracks_the_default_one_is_shown(tmp_path, container):
    small = write_stream(tmp_path / "s.mp4", textured_clip(10), KINDS["mp4"])
    large = write_stream(tmp_path / "l.mp4", textured_clip(20, 96, 128), KINDS["mp4"])
    path = join_tracks(
        tmp_path / f"two.{container}", [small, large], [Disposition(0), Disposition.default]
    )

    assert probe(path) == VideoInfo(20, 25.0, 96, 128, 0.8)
    np.testing.assert_array_equal(
        read_frames(path, [19, 3]).permute(1, 2, 3, 0), decode_in_order(large)[[19, 3]]
    )


@pytest.fixture
def cover(tmp_path):
    path = tmp_path / "cover.mp4"
    return write_stream(path, textured_clip(1, 96, 128), Stream(codec="mjpeg", pixels="yuvj420p"))


def test_a_cover_is_not_the_video(tmp_path, cover):
    source = write_stream(tmp_path / "v.mp4", textured_clip(10), KINDS["mp4"])
    path = join_tracks(
        tmp_path / "c.mp4", [cover, source], [Disposition.attached_pic, Disposition(0)]
    )

    assert (probe(path).frames, probe(path).height) == (10, 48)


def test_a_cover_alone_is_no_video(tmp_path, cover):
    path = join_tracks(tmp_path / "c.mp4", [cover], [Disposition.attached_pic])

    with pytest.raises(VideoError, match=r"c\.mp4: holds no video"):
        probe(path)


@pytest.mark.parametrize("kind", ["variable frame rate", "variable frame rate in mkv"])
def test_the_frame_rate_is_frames_over_duration(tmp_path, kind):
    path = write_stream(tmp_path / "v", textured_clip(40), KINDS[kind])

    info = probe(path)

    assert info.frame_rate == 40 / info.duration
    # From 0 to when the last of the uneven frames begins, and on as long as the longest.
    last, longest = UNEVEN[-1], max(np.diff(UNEVEN))
    assert last < 1000 * info.duration < last + longest + 1


def test_a_raw_stream_lasts_as_long_as_its_rate_says(tmp_path):
    path = write_stream(tmp_path / "v.h264", textured_clip(40), Stream("h264", options=X264))

    assert probe(path) == VideoInfo(40, 25.0, 48, 64, 1.6)
    np.testing.assert_array_equal(
        read_frames(path, [30, 2]).permute(1, 2, 3, 0), decode_in_order(path)[[30, 2]]
    )


def test_a_stream_without_seeking_is_read_from_the_start(tmp_path):
    kind = Stream("mjpeg", "mjpeg", pixels="yuvj420p")
    path = write_stream(tmp_path / "v.mjpeg", textured_clip(10), kind)

    np.testing.assert_array_equal(
        read_frames(path, [8, 2]).permute(1, 2, 3, 0), decode_in_order(path)[[8, 2]]
    )


def test_a_video_of_one_frame_is_a_video(tmp_path):
    path = write_stream(tmp_path / "v.mkv", textured_clip(1), Stream("matroska", "ffv1"))

    assert probe(path) == VideoInfo(1, 25.0, 48, 64, 0.04)
