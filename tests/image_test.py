"""One image file of each kind against the array that it was written from; masks; what is damaged or claims too much."""

import contextlib
import io
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaejax.datasets import image
from vaejax.errors import DataError

RNG = np.random.default_rng(0)
GREY8, GREY16 = RNG.integers(0, 256, (9, 7), dtype=np.uint8), RNG.integers(0, 65536, (9, 7), dtype=np.uint16)
RGB8, RGB16 = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8), RNG.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
TAGS = {"width": 256, "height": 257, "bits": 258, "compression": 259, "meaning": 262, "samples": 277}


def file(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def npy(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **options)
    return stream.getvalue()


def png(pixels: np.ndarray | Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def tiff(tags: dict[int, int | tuple[int, ...]], pixels: bytes = bytes(64)) -> bytes:
    """A little-endian TIFF of these tags; its strip, or tile, is `pixels`, which lie behind the tags."""
    end = 8 + 2 + 12 * (len(tags) + 1) + 4
    further = b""
    entries = []
    for tag, value in sorted((tags | {273: end}).items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}{'H' if len(values) > 1 else 'I'}", *values)
        if len(packed) > 4:
            place = end + len(pixels) + len(further)
            further, packed = further + packed, struct.pack("<I", place)
        entries.append(struct.pack("<HHI", tag, 3 if len(values) > 1 else 4, len(values)) + packed)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + pixels + further


def plain(pixels: np.ndarray, **other) -> bytes:
    """An uncompressed TIFF, little-endian."""
    height, width, samples = (*pixels.shape, 1)[:3]
    bits = (8 * pixels.dtype.itemsize,) * samples
    tags = {"width": width, "height": height, "bits": bits, "compression": 1, "meaning": 2 if samples == 3 else 1}
    tags |= {"samples": samples, "strip": pixels.nbytes, "rows": height}
    names = TAGS | {"strip": 279, "rows": 278, "orientation": 274, "planes": 284}
    return tiff(
        {names[name]: value for name, value in (tags | other).items()}, pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    )


@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8, RGB16], ids=["grey8", "grey16", "rgb8", "rgb16"])
@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "packbits"])
def test_a_tiff_keeps_every_bit(tmp_path, pixels, compression):
    found = image.decode(file(tmp_path, imagecodecs.tiff_encode(pixels, compression=compression)))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels.reshape(9, 7, -1))
    np.testing.assert_array_equal(image.decode(file(tmp_path, plain(pixels))), found)


@pytest.mark.parametrize("pixels", [GREY8, GREY16])
def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path, pixels):
    found = image.decode(file(tmp_path, plain(pixels, meaning=0)))
    np.testing.assert_array_equal(found[..., 0], np.iinfo(pixels.dtype).max - pixels)


def big_endian(pixels: np.ndarray, meaning: int) -> bytes:
    """An uncompressed TIFF of grey values."""
    (height, width), bits = pixels.shape, 8 * pixels.dtype.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: meaning, 273: 134, 277: 1, 278: height, 279: pixels.nbytes, 284: 1}
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    content = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4) + content


@pytest.mark.parametrize("pixels", [GREY8, GREY16])
@pytest.mark.parametrize("meaning", [0, 1])
def test_the_order_of_bytes_does_not_matter(tmp_path, pixels, meaning):
    found = image.decode(file(tmp_path, big_endian(pixels, meaning)))[..., 0]
    np.testing.assert_array_equal(found, pixels if meaning else np.iinfo(pixels.dtype).max - pixels)
    np.testing.assert_array_equal(found, image.decode(file(tmp_path, plain(pixels, meaning=meaning)))[..., 0])


def test_a_gif_says_what_to_do(tmp_path):
    frames = [Image.fromarray(GREY8), Image.fromarray(GREY8[::-1])]
    frames[0].save(tmp_path / "file", "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"neither a PNG .*; save each frame of a GIF as a PNG"):
        image.decode(tmp_path / "file")


@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8])
def test_a_tiff_is_turned_as_its_tag_says(tmp_path, pixels):
    found = image.decode(file(tmp_path, plain(pixels, orientation=6)))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1).reshape(7, 9, -1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (plain(RGB16, orientation=6), "turned by a tag, or in separate planes"),
        (plain(RGB16, planes=2), "turned by a tag, or in separate planes"),
        (plain(np.float32(GREY8)), "more than 8 bits"),
        (plain(GREY16, bits=12), "more than 8 bits"),
        (plain(np.dstack([RGB16, GREY16]), meaning=2), "more than 8 bits"),
        (plain(GREY8)[:100], "damaged"),
        (plain(GREY8)[:20], "damaged|neither"),
        (plain(GREY8, width=40_000, height=40_000), "pixels claimed|Bomb"),
        (plain(GREY8, width=9_000, height=9_000), "9000 x 9000 pixels claimed"),
        (tiff({256: 9, 257: 9, 258: 8, 259: 5, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 324: 150, 325: 9}), "pixels claimed"),
        (b"II*\0" + bytes(40), "neither"),
    ],
)
def test_a_tiff_that_cannot_be_kept_as_it_is_says_why(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        image.decode(file(tmp_path, content))


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_images_in_a_file_are_refused(tmp_path, kind):
    first, second = Image.fromarray(GREY8), Image.fromarray(GREY8[::-1])
    first.save(tmp_path / "file", kind, save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"2 frames or pages in one file.*; expected one. Save each"):
        image.decode(tmp_path / "file")


def test_deep_colours_without_imagecodecs_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(DataError, match=r"imagecodecs.*vaejax\[medical\]"):
        image.decode(file(tmp_path, plain(RGB16)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([plain(RGB16), plain(GREY16), plain(GREY8), npy(RGB8), png(RGB8)]), st.data())
def test_any_damage_is_an_image_or_one_error(tmp_path_factory, content, data):
    broken = bytearray(content[: data.draw(st.integers(1, len(content)))])
    for _ in range(data.draw(st.integers(0, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = file(tmp_path_factory.getbasetemp(), bytes(broken))
    for decode in (image.decode, image.decode_segmentation):
        with contextlib.suppress(DataError):
            assert decode(path).dtype.name in image.WHITE


# --- NPY


@pytest.mark.parametrize(
    "values", [GREY8, GREY16, RGB8, np.float64(GREY8) / 255.0, GREY16.astype(">u2"), np.asfortranarray(RGB16)]
)
def test_an_npy_of_one_image_is_read(tmp_path, values):
    found = image.decode(file(tmp_path, npy(values)))
    assert found.dtype == {"u": {1: np.uint8, 2: np.uint16}, "f": {8: np.float32}}[values.dtype.kind][values.dtype.itemsize]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values.astype(found.dtype).reshape(9, 7, -1))


def claiming(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """An .npy whose header claims more than it holds."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(100)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (claiming((10**6, 10**6)), "claimed; at most|more than the file can hold"),
        (claiming((50, 50)), "2500 bytes claimed, more than the file can hold"),
        (claiming((9, -7)), "no possible size"),
        (claiming((9, 7), "|V0"), "no possible size"),
        (npy(np.array([{}]), allow_pickle=True), "never read"),
        (npy(np.zeros((4, 9, 7, 1), np.uint8)), r"shape \(4, 9, 7, 1\); expected"),
        (npy(np.zeros((9, 7, 5), np.uint8)), "shape"),
        (npy(np.zeros((0, 7), np.uint8)), "shape"),
        (npy(np.zeros((9, 7), np.int32)), "found int32"),
        (npy(np.full((9, 7), np.nan)), "from 0 to 1, found nan"),
        (npy(np.full((9, 7), 255.0)), "from 0 to 1, found 255.0"),
        (npy(GREY8)[:-1], "cut short after 62 of 63|can hold"),
        (b"\x93NUMPY\x09\x00" + bytes(99), "no array of NumPy's format"),
        (b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('')      ", "no array of NumPy's format"),
    ],
)
def test_an_npy_that_is_no_image_says_why(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        image.decode(file(tmp_path, content))


def test_a_file_is_not_read_beyond_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"a file of .* bytes; at most 100 are allowed"):
        image.decode(file(tmp_path, plain(RGB16)))


# --- masks


CLASSES = RNG.integers(0, 5, (9, 7), dtype=np.uint8)


def palette() -> Image.Image:
    """Classes as places in a palette, as PASCAL VOC has them."""
    picture = Image.fromarray(CLASSES).convert("P")
    picture.putdata(CLASSES.ravel().tolist())
    picture.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return picture


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(CLASSES), CLASSES),
        (png(palette()), CLASSES),
        (png(CLASSES.astype(np.uint16)), CLASSES),
        (png(np.dstack([CLASSES] * 3)), CLASSES),
        (npy(CLASSES.astype(np.int64)), CLASSES),
        (npy(CLASSES > 2), CLASSES > 2),
        (plain(CLASSES), CLASSES),
        (png(np.uint8(CLASSES > 2) * 255), CLASSES > 2),
        (png(Image.fromarray(np.uint8(CLASSES > 2) * 255).convert("1")), CLASSES > 2),
        (png(np.zeros_like(CLASSES)), np.zeros_like(CLASSES)),
        (png(np.full_like(CLASSES, 255)), np.ones_like(CLASSES)),
    ],
)
def test_the_values_of_a_mask_are_its_classes(tmp_path, content, expected):
    found = image.decode_segmentation(file(tmp_path, content))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


NIBBLES = b"".join([
    b"\x89PNG\r\n\x1a\n",
    chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)),
    chunk(b"IDAT", zlib.compress(b"\0\x12")),
    chunk(b"IEND", b""),
])  # fmt: skip
"""A grey PNG of 4 bits, with the values 1 and 2."""


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg(CLASSES), "JPEG, whose compression changes classes"),
        (png(RGB8), "expected one class a pixel"),
        (NIBBLES, "2 or 4 bits a pixel"),
        (png(GREY16), "no classes; expected whole numbers from 0 to 255"),
        (npy(np.full((9, 7), 0.5)), "no classes"),
        (npy(np.full((9, 7), -1)), "no classes"),
        (npy(np.full((9, 7), np.nan)), "no classes"),
        (npy(np.zeros((2, 9, 7), np.uint8) + np.uint8([[[1]], [[2]]])), "expected one class a pixel"),
        (npy(np.uint8([[0, 1, 255]])), "255 beside other classes"),
        (npy(np.uint8([[3, 255]])), "255 beside other classes"),
    ],
)
def test_what_is_no_mask_says_why(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        image.decode_segmentation(file(tmp_path, content))


def test_a_mask_has_the_size_of_its_image():
    image.check_mask(CLASSES, (9, 7))
    with pytest.raises(DataError, match=re.escape("a mask of 7 x 9 pixels; expected 9 x 7")):
        image.check_mask(CLASSES.T, (9, 7))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_shape_of_an_image_is_known_before_its_pixels(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for content in (png(GREY8, exif=exif), plain(GREY8, orientation=orientation), npy(RGB16)):
        path = file(tmp_path, content)
        assert image.shape_of(path) == image.decode(path).shape[:2]
