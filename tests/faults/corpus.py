"""Image files as an attacker or a broken disk would make them: seeded mutations of every kind of file that is taken."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

from PIL import Image, PngImagePlugin

Mutation = Callable[[random.Random, bytes], bytes]
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@cache
def seeds() -> tuple[bytes, ...]:
    """Valid files: JPEG, PNG and WebP in the modes and with the metadata that occur."""
    noise = random.Random(0).randbytes(60 * 44 * 3)
    colour = Image.frombytes("RGB", (60, 44), noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 200
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "x" * 5000, zip=True)
    texts.add_itxt("title", "bücher", "de", "Titel")
    files = [
        _save(colour, "JPEG", quality=90),
        _save(colour, "JPEG", progressive=True, exif=exif),
        _save(colour.convert("L"), "JPEG"),
        _save(colour.convert("CMYK"), "JPEG"),
        _save(colour, "PNG", pnginfo=texts, exif=exif),
        _save(colour.convert("RGBA"), "PNG"),
        _save(colour.convert("P"), "PNG", transparency=3),
        _save(colour.convert("1"), "PNG"),
        _save(colour.convert("I;16"), "PNG"),
        _save(colour.convert("LA"), "PNG"),
        _save(colour, "WEBP", quality=80),
        _save(colour, "WEBP", lossless=True, exif=exif),
        _save(colour.convert("RGBA"), "WEBP"),
    ]
    return tuple(files)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 16)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_header(rng: random.Random, data: bytes) -> bytes:
    head = min(len(data), 80)
    return _flip(rng, data[:head]) + data[head:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randint(1, 300)) + data[start:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    part = data[start : start + rng.randint(1, 200)]
    return data[:start] + part * rng.randint(2, 200) + data[start:]


def _extreme(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice(("B", "H", "I"))
    value = rng.choice(EXTREMES) & ((1 << 8 * struct.calcsize(size)) - 1)
    packed = struct.pack(rng.choice("<>") + size, value)
    start = rng.randrange(min(len(data) - 4, 120))
    return data[:start] + packed + data[start + len(packed) :]


def _splice(rng: random.Random, data: bytes) -> bytes:
    other = rng.choice(seeds())
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _garbage_behind(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randint(1, 3000))


def _announce(rng: random.Random, data: bytes) -> bytes:
    """A PNG whose header, with a right checksum, announces any size, depth and colour type."""
    sides = [rng.choice((1, 27, 28, 60, 5000, 70_000, 2**31 - 1)) for _ in range(2)]
    modes = (rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 7)), 0, 0, rng.choice((0, 1)))
    header = b"IHDR" + struct.pack(">IIBBBBB", *sides, *modes)
    pixels = b"IDAT" + zlib.compress(rng.randbytes(rng.randint(0, 50)) * rng.randint(1, 5000))
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (header, pixels, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _noise(rng: random.Random, data: bytes) -> bytes:
    """Nothing but the first bytes is right."""
    return data[: rng.choice((3, 8, 12, 16))] + rng.randbytes(rng.randint(0, 2000))


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _flip_header,
    _cut,
    _remove,
    _insert,
    _repeat,
    _extreme,
    _splice,
    _garbage_behind,
    _announce,
    _noise,
)


def mutated(count: int, seed: int = 0) -> Iterator[bytes]:
    """So many files, always the same ones for a seed; some of them are still good."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        data = rng.choice(seeds())
        for _ in range(rng.choice((1, 1, 1, 2))):
            data = rng.choice(MUTATIONS)(rng, data) or b"\0"
        yield data
