"""From stored bytes to pixels: what is usable, and the one error for everything else."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.worker.helpers import Format, encoded, reference
from worker.contract import image_key
from worker.errors import BadImageError, ImageLostError
from worker.images import decode_image, fetch_image

DECODER_WORDS = ("0x", "PIL", "Error", "truncated", "stream", "cannot identify", "unrecognized", "BytesIO", "/")


def gradient(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture without symmetry."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).convert(mode)


def decode(data: bytes, kind: Format = "PNG", size: tuple[int, int] | None = None) -> Image.Image:
    return decode_image(data, reference(data, kind, size))


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB")).astype(int)


def refused(data: bytes, kind: Format, size: tuple[int, int] = (64, 48)) -> str:
    """The message with which the bytes are refused."""
    with pytest.raises(BadImageError) as error:
        decode(data, kind, size)
    message = str(error.value)
    assert not any(word in message for word in DECODER_WORDS), message
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return message


class TestGoodImages:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_every_format_comes_back_as_rgb_in_its_size(self, kind: Format) -> None:
        image = decode(encoded(gradient(), kind), kind)
        assert (image.mode, image.size) == ("RGB", (64, 48))
        assert np.abs(pixels(image) - pixels(gradient())).mean() < 6

    def test_sixteen_bits_of_grey_keep_their_shades(self) -> None:
        levels = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
        image = decode(encoded(Image.fromarray(levels)))
        assert np.abs(pixels(image)[..., 0] - levels // 256).max() <= 1

    def test_a_palette_with_transparency_lies_on_white(self) -> None:
        picture = Image.new("P", (64, 48), 0)
        picture.putpalette([10, 20, 30, 200, 100, 50])
        picture.putpixel((5, 5), 1)
        image = decode(encoded(picture, transparency=0))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((5, 5)) == (200, 100, 50)

    def test_a_palette_with_an_alpha_for_each_colour_lies_on_white(self) -> None:
        picture = Image.new("P", (64, 48), 0)
        picture.putpalette([0, 0, 0, 200, 100, 50])
        picture.putpixel((5, 5), 1)
        image = decode(encoded(picture, transparency=bytes([0, 255])))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((5, 5)) == (200, 100, 50)

    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_half_transparent_black_becomes_grey(self, mode: str) -> None:
        picture = Image.new("RGBA", (64, 48), (0, 0, 0, 128)).convert(mode)
        shade = decode(encoded(picture)).getpixel((3, 3))
        assert isinstance(shade, tuple)
        assert all(abs(channel - 127) <= 1 for channel in shade)

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    def test_fewer_colours_are_no_trouble(self, mode: str) -> None:
        assert decode(encoded(gradient(mode))).mode == "RGB"

    def test_a_grey_with_one_transparent_level_lies_on_white(self) -> None:
        assert decode(encoded(Image.new("L", (64, 48), 7), transparency=7)).getpixel((0, 0)) == (255, 255, 255)

    def test_sixteen_bits_with_a_transparent_level_are_usable(self) -> None:
        levels = np.full((48, 64), 40_000, np.uint16)
        assert decode(encoded(Image.fromarray(levels), transparency=40_000)).mode == "RGB"

    def test_a_cmyk_jpeg_keeps_its_colours(self) -> None:
        image = decode(encoded(Image.new("RGB", (64, 48), (200, 40, 40)).convert("CMYK"), "JPEG"), "JPEG")
        assert np.abs(pixels(image) - (200, 40, 40)).max() < 12

    def test_an_animation_is_its_first_frame(self) -> None:
        frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
        data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        assert decode(data, "WEBP").getpixel((0, 0)) == (255, 0, 0)

    def test_more_pixels_than_pillow_likes_are_admissions_business(self) -> None:
        assert Image.MAX_IMAGE_PIXELS is None


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_a_turned_picture_stands_upright(self, orientation: int, kind: Format) -> None:
        picture = gradient()
        undone = {
            1: None,
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }[orientation]
        stored = picture if undone is None else picture.transpose(undone)
        exif = Image.Exif()
        exif[0x0112] = orientation
        best: dict[Format, dict[str, Any]] = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}
        image = decode(encoded(stored, kind, exif=exif, **best[kind]), kind)
        assert image.size == picture.size
        assert np.abs(pixels(image) - pixels(picture)).mean() < 4

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\0\0garbage",
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0\0\0\0\0",
            b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\xff\xff\xff\xff\0\0\0\0",
        ],
        ids=["no tiff", "cut off", "orientation 99", "endless string", "far away"],
    )
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_a_broken_exif_block_leaves_the_picture_usable(self, exif: bytes, kind: Format) -> None:
        image = decode(encoded(gradient(), kind, exif=exif), kind)
        assert np.abs(pixels(image) - pixels(gradient())).mean() < 6


class TestBadImages:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_a_truncated_file_is_refused(self, kind: Format, share: float) -> None:
        noise = Image.effect_noise((64, 48), 80).convert("RGB")
        data = encoded(noise, kind)
        assert "damaged or incomplete" in refused(data[: int(len(data) * share)], kind)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_another_size_than_announced_is_refused_before_decoding(self, kind: Format) -> None:
        assert "size differs" in refused(encoded(gradient(), kind), kind, (48, 64))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("announced", ["JPEG", "PNG", "WEBP"])
    def test_another_format_than_announced_is_refused(self, kind: Format, announced: Format) -> None:
        if kind != announced:
            assert announced in refused(encoded(gradient(), kind), announced)

    @pytest.mark.parametrize("data", [b"", b"\0" * 100, b"GIF89a" + bytes(50), b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_what_is_no_image_is_refused(self, data: bytes, kind: Format) -> None:
        refused(data, kind)

    def test_a_compressed_text_bomb_is_refused(self) -> None:
        data = encoded(gradient())
        text = b"Comment\0\0" + zlib.compress(bytes(80 * 2**20))
        chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
        refused(data[:33] + chunk + data[33:], "PNG")

    @pytest.mark.filterwarnings("error")
    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
        mode=st.sampled_from(["RGB", "RGBA", "P", "L", "LA", "CMYK"]),
        damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
        cut=st.floats(0.05, 1),
    )
    def test_whatever_the_bytes_only_one_error_comes_out_and_no_warning(
        self, kind: Format, mode: str, damage: list[tuple[float, int]], cut: float
    ) -> None:
        data = bytearray(damageable(kind, mode if mode in MODES[kind] else "RGB"))
        for place, value in damage:
            data[min(int(place * len(data)), len(data) - 1)] = value
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                image = decode(bytes(data[: max(1, int(cut * len(data)))]), kind, (64, 48))
            except BadImageError:
                pass
            else:
                assert image.mode == "RGB"
                assert sorted(image.size) == [48, 64]
        assert seen == []

    @pytest.mark.filterwarnings("error")
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=st.binary(max_size=80), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
    def test_whatever_the_exif_block_the_picture_is_usable(self, body: bytes, kind: Format) -> None:
        assert decode(encoded(SMALL, kind, exif=b"Exif\0\0" + body), kind).mode == "RGB"


MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "L", "LA"), "WEBP": ("RGB", "RGBA")}
SMALL = Image.new("RGB", (16, 16), "teal")
_FILES: dict[tuple[Format, str], bytes] = {}


def damageable(kind: Format, mode: str) -> bytes:
    """A file with an EXIF block, so that damage finds something in every part."""
    if (kind, mode) not in _FILES:
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x010E] = "description"
        extra = {"transparency": 3} if mode == "P" else {}
        _FILES[kind, mode] = encoded(gradient(mode), kind, exif=exif, **extra)
    return _FILES[kind, mode]


def test_many_threads_leave_the_process_warning_filters_as_they_were() -> None:
    data = encoded(gradient(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    before = list(warnings.filters)
    start = threading.Barrier(6)
    failures: list[BaseException] = []

    def work() -> None:
        start.wait()
        try:
            for _ in range(50):
                decode(data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(warnings.filters) == before


class TestClaimCheck:
    def test_the_stored_bytes_come_back(self, redis_client: redis.Redis) -> None:
        data = encoded(gradient())
        redis_client.set(image_key(reference(data).sha256), data)
        assert fetch_image(redis_client, reference(data)) == data

    def test_lost_bytes_are_said_to_be_lost(self, redis_client: redis.Redis) -> None:
        with pytest.raises(ImageLostError, match="no longer stored"):
            fetch_image(redis_client, reference(encoded(gradient())))
