"""SAMA's scaling and masking of images, and the reading of image files."""

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image, features
from published_samples import assert_published, formula_video
from torchvision.transforms import v2

from vqa.sampling.sama_image import (
    ImageError,
    SamaImageSampling,
    mask_scales,
    read_sama_image,
)

PUBLISHED = np.load(Path(__file__).parents[1] / "data" / "sama_iqa_sampling.npz")
SAMPLES = sorted({key.rsplit("/", 1)[0] for key in PUBLISHED.files})
OUR_NAMES = {"fragment": "fragments", "swm": "sama", "spm": "sama-spm"}
VARIANTS = ["sama", "sama-spm", "fragments"]
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def tiny(variant="sama"):
    return SamaImageSampling(variant=variant, grid=2, patch=8)


def noise(height=30, width=41):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, **options)
    return path


def published_size(key):
    return map(int, key.split("/")[0].split("_")[-1].split("x"))


@pytest.mark.parametrize("key", [key for key in SAMPLES if not key.startswith("tensor")])
def test_files_are_read_as_published(key, tmp_path):
    variant = key.split("/")[1]
    path = save(tmp_path / "image.png", formula_video(1, *published_size(key))[:, 0])

    image = read_sama_image(path, SamaImageSampling(variant=OUR_NAMES.get(variant, variant)))

    assert_published(image, PUBLISHED, key, atol=1e-4)


@pytest.mark.parametrize("key", [key for key in SAMPLES if key.startswith("tensor")])
def test_mosaics_are_the_published_ones(key):
    variant = key.split("/")[1]
    generator = torch.Generator().manual_seed(0) if "train" in key else None
    image = formula_video(1, *published_size(key))[:, 0] / 255

    mosaic = mask_scales(
        image, SamaImageSampling(variant=OUR_NAMES.get(variant, variant)), generator
    )

    assert_published(mosaic, PUBLISHED, key, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_training_draws_as_torchvision_s_flip_and_rotation_do(seed, tmp_path):
    pixels = noise()
    path = save(tmp_path / "image.png", pixels)
    transform = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomRotation(45)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        turned = transform(pixels / 255)
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
    expected = mask_scales((turned - MEAN) / DEVIATION, tiny(), generator)

    image = read_sama_image(path, tiny(), torch.Generator().manual_seed(seed))

    assert_allclose(image, expected, rtol=0, atol=1e-5)


def test_all_draws_come_from_the_generator(tmp_path):
    path = save(tmp_path / "image.png", noise())
    state = torch.get_rng_state()

    first, again, other = (
        read_sama_image(path, tiny(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )

    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_of_the_mosaic_s_size_is_only_normalised(variant, tmp_path):
    pixels = noise(16, 16)

    image = read_sama_image(save(tmp_path / "image.png", pixels), tiny(variant))

    assert_allclose(image, (pixels / 255 - MEAN) / DEVIATION, rtol=0, atol=1e-6)


def test_a_small_image_is_enlarged_until_its_short_side_fits(tmp_path):
    pixels = noise(10, 13)
    path = save(tmp_path / "image.png", pixels)
    enlarged = Image.open(path).resize((13 * 16 // 10, 16), Image.Resampling.BILINEAR)
    larger_path = tmp_path / "larger.png"
    enlarged.save(larger_path)

    assert read_sama_image(path, tiny()).equal(read_sama_image(larger_path, tiny()))


@given(
    variant=st.sampled_from(VARIANTS),
    seed=st.none() | st.integers(0, 99),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
)
def test_a_mosaic_stays_within_the_range_of_the_image(variant, seed, height, width):
    image = 40 + noise(height, width) // 2
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    mosaic = mask_scales(image, tiny(variant), generator)

    assert mosaic.shape == (3, 16, 16)
    assert image.min() <= mosaic.min()
    assert mosaic.max() <= image.max()


# Pillow 12, the last for Python 3.10, writes YCbCr TIFF files that it cannot read itself.
KINDS = ["L", "1", "P", "RGBA", "LA", "CMYK", *(["YCbCr"] if PIL.__version__ >= "13" else [])]


@pytest.mark.parametrize("mode", KINDS)
def test_other_kinds_of_8_bit_image_become_colours(mode, tmp_path):
    source = Image.fromarray(noise().permute(1, 2, 0).numpy()).convert(mode)
    path = tmp_path / "image.tif"
    source.save(path)
    as_colours = tmp_path / "colours.png"
    source.convert("RGB").save(as_colours)

    expected = read_sama_image(as_colours, tiny())
    # TIFF stores YCbCr and CMYK in ways of its own: a level more or less.
    assert_allclose(read_sama_image(path, tiny()), expected, rtol=0, atol=0.02)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    palette = Image.fromarray(noise().permute(1, 2, 0).numpy()).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    palette.convert("RGB").save(tmp_path / "colours.png")

    images = [read_sama_image(tmp_path / name, tiny()) for name in ("palette.png", "colours.png")]

    assert images[0].equal(images[1])


def test_the_orientation_that_a_camera_noted_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "turned.png", noise(), exif=exif)

    plain = save(tmp_path / "plain.png", noise())

    assert read_sama_image(turned, tiny()).equal(read_sama_image(plain, tiny()))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_an_error_naming_the_file(dtype, tmp_path):
    Image.fromarray(np.ones((20, 20), dtype)).save(tmp_path / "deep.tif")

    with pytest.raises(ImageError, match=r"deep\.tif: expected 8 bits a channel"):
        read_sama_image(tmp_path / "deep.tif", tiny())


def test_a_missing_file_is_an_error_naming_it(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png: cannot be read"):
        read_sama_image(tmp_path / "absent.png", tiny())


@settings(suppress_health_check=SUPPRESSED)
@given(kind=st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]), share=st.floats(0, 0.9))
def test_a_truncated_file_is_an_error_naming_it(kind, share, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(noise().permute(1, 2, 0).numpy()).save(whole, kind)
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[: int(share * whole.tell())])

    with pytest.raises(ImageError, match=r"cut\.jpg: cannot be read"):
        read_sama_image(tmp_path / "cut.jpg", tiny())


@settings(suppress_health_check=SUPPRESSED)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]),
    place=st.floats(0, 0.99),
    value=st.integers(0, 255),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns about some damage and mends it
def test_a_damaged_file_is_read_or_an_image_error(kind, place, value, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(noise().permute(1, 2, 0).numpy()).save(whole, kind)
    damaged = bytearray(whole.getvalue())
    damaged[int(place * len(damaged))] = value
    (tmp_path / "damaged.jpg").write_bytes(damaged)

    with suppress(ImageError):  # and no other exception
        assert read_sama_image(tmp_path / "damaged.jpg", tiny()).shape == (3, 16, 16)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_an_error_naming_it(tmp_path):
    path = tmp_path / "damaged.avif"
    Image.fromarray(noise(48, 64).permute(1, 2, 0).numpy()).save(path)
    whole = path.read_bytes()
    begin = whole.index(b"mdat") + 4
    path.write_bytes(whole[:begin] + b"\xff" * (len(whole) - begin))

    with pytest.raises(ImageError, match=r"damaged\.avif: cannot be read"):
        read_sama_image(path, tiny())


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, IndexError, AttributeError])
def test_whatever_a_decoder_raises_is_an_error_naming_the_file(tmp_path, monkeypatch, error):
    path = save(tmp_path / "a.png", noise())

    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)

    with pytest.raises(ImageError, match=rf"a\.png: cannot be read as an image \({error.__name__}"):
        read_sama_image(path, tiny())


def test_a_name_that_cannot_be_printed_is_escaped_in_errors(tmp_path):
    path = tmp_path / "two\nlines \udce9.png"
    path.touch()

    with pytest.raises(ImageError, match=r"two\\nlines \\udce9\.png: cannot be read"):
        read_sama_image(path, tiny())


def test_a_photograph_of_100_megapixels_is_read_without_a_warning(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30 * 41 - 1)

    assert read_sama_image(path, tiny()).shape == (3, 16, 16)


def test_a_strip_that_would_fill_the_memory_is_an_error_naming_it(tmp_path):
    Image.new("RGB", (1, 300_000)).save(tmp_path / "strip.png")

    with pytest.raises(ImageError, match=r"strip\.png: .* enlarged to 16 x 4800000"):
        read_sama_image(tmp_path / "strip.png", tiny())


def test_an_image_smaller_than_the_mosaic_cannot_be_masked():
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(15, 30\)"):
        mask_scales(noise(15, 30), tiny())


@pytest.mark.parametrize("name", ["swm", "fragment", "sama-swm"])
def test_an_unknown_variant_is_an_error(name):
    with pytest.raises(ValueError, match="variant: expected one of sama, sama-spm, fragments"):
        SamaImageSampling(variant=name)


@pytest.mark.parametrize("name", ["grid", "patch"])
def test_numbers_below_one_are_errors(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        SamaImageSampling(**{name: 0})
