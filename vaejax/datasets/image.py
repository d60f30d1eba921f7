"""One image: decoded from a file, brought to the asked number of channels and size. Depth is never changed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8, UInt16
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from vaejax.datasets import npy
from vaejax.datasets.source import decoding, size_of
from vaejax.errors import DataError

WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}

MAX_BYTES = 512 * 2**20
"""Of a file, and of the array that it claims."""
MAX_PIXELS = 2**26
"""Of the height times the width that a file claims, and of a tile of it."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy"}
"""How files that `decode` reads are called. It looks at their contents alone."""

_LUMA = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
# Pillow's mode -> the mode to convert it to
_MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}
# Pillow's table of TIFF pixels lacks 16-bit grey of big-endian files whose 0 is white; it has that of little-endian ones
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
_BITS, _MEANING, _ORIENTATION, _PLANES, _TILE = 258, 262, 274, 284, (322, 323)  # tags of TIFF


def decode(path: Path) -> Num[np.ndarray, "H W C"]:
    """The pixels of a PNG, JPEG, TIFF or NPY file: uint8, uint16, or float32 in [0, 1].

    PNG, JPEG and TIFF: turned as their orientation says; uint8, or uint16 for 16-bit grey, and for 16-bit RGB of TIFF. Grey
    gives 1 channel, grey with alpha 2, RGB and palettes 3, RGB with alpha 4; black and white becomes 0 and 255; a TIFF whose
    0 is white is inverted. Several images in a PNG or TIFF are refused: nobody says what they are to each other.
    NPY: one array [H, W] or [H, W, 1 to 4].

    Raises:
        DataError: the bare reason why the file is unreadable. Sizes are checked before memory is taken.
    """
    with decoding("image"):
        data = _read(path)
        if data.startswith(npy.MAGIC):
            return _of_array(npy.read(io.BytesIO(data), len(data), MAX_BYTES))
        with _opened(data) as image:
            return _pixels(image, data)


def shape_of(path: Path) -> tuple[int, int]:
    """Height and width of the image that `decode` gives; its pixels are not decoded.

    Raises:
        DataError: as `decode`, as far as it is known before them.
    """
    with decoding("image"):
        data = _read(path)
        if data.startswith(npy.MAGIC):
            height, width, *_ = npy.shape_of(io.BytesIO(data), len(data))
            return height, width
        with _opened(data) as image:
            across = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5  # Pillow turns a TIFF's at once
            return (image.width, image.height) if across else (image.height, image.width)


def decode_segmentation(path: Path) -> UInt8[np.ndarray, "H W"]:
    """The class of every pixel, 0 for none, of a PNG, TIFF or NPY file: its grey values, the places in its palette, or 0 and 1.

    Raises:
        DataError: the bare reason: as for `decode`; a JPEG, whose compression invents classes; colours; or see `to_classes`.
    """
    with decoding("image"):
        data = _read(path)
        if data.startswith(npy.MAGIC):
            values = npy.read(io.BytesIO(data), len(data), MAX_BYTES)
        else:
            with _opened(data) as image:
                if image.format not in ("PNG", "TIFF"):
                    raise DataError("a mask as JPEG, whose compression changes classes; expected PNG, TIFF or NPY")
                if any(f"L;{bits}" in str(getattr(image, "tile", "")) for bits in (2, 4)):  # Pillow would stretch them
                    raise DataError("a mask of 2 or 4 bits a pixel; expected 8")
                values = np.array(ImageOps.exif_transpose(image)) if image.mode in ("P", "1") else _pixels(image, data)
        if values.ndim == 3 and values.shape[-1] <= 4 and (values == values[..., :1]).all():
            values = values[..., 0]
        if values.ndim != 2:
            raise DataError(f"a mask of shape {values.shape}; expected one class a pixel, [H, W]")
        return to_classes(values)


def to_classes(values: Num[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """The values of a mask as classes: themselves; where there are 0 and 255 alone, 0 and 1.

    Raises:
        DataError: the bare reason: values that are not whole, from 0 to 255; 255 beside other classes, which could be one of
            them, or mean that nobody knows.
    """
    with np.errstate(invalid="ignore"):
        classes = values.astype(np.uint8)
    if not np.array_equal(classes, values):
        raise DataError("a mask whose values are no classes; expected whole numbers from 0 to 255")
    found = np.unique(classes)
    if 255 not in found:
        return classes
    if found.size > 1 + (found[0] == 0):
        raise DataError("a mask with 255 beside other classes; expected 0 and 255 alone, or classes below 255")
    return classes // 255


def check_mask(mask: UInt8[np.ndarray, "H W"], image: tuple[int, int]) -> None:
    """Raises DataError, the bare reason, where a mask has not one class for each pixel of its image (height, width)."""
    if mask.shape != image:
        found, expected = (" x ".join(map(str, shape)) for shape in (mask.shape, image))
        raise DataError(f"a mask of {found} pixels; expected {expected}, as its image has")


def check_values(images: Num[np.ndarray, "..."]) -> None:
    """Raises DataError, the bare reason, where an array is neither uint8 nor uint16 nor float in [0, 1]."""
    if images.dtype.kind == "f":
        if not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
            raise DataError(f"expected values from 0 to 1, found {images.min()} to {images.max()}; rescale them")
    elif images.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise DataError(f"expected uint8, uint16 or float of 0 to 1, found {images.dtype}")


def native(images: Num[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
    """Checked values as they are prepared: floats of any size as float32, and the machine's order of bytes."""
    return np.asarray(images, np.float32 if images.dtype.kind == "f" else images.dtype.newbyteorder("="))


def _read(path: Path) -> bytes:
    if not size_of(path, MAX_BYTES):
        raise DataError("an empty file")
    return path.read_bytes()


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The file's one image, whose pixels nobody has read yet."""
    try:
        opened = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    except UnidentifiedImageError:
        hint = "; save each frame of a GIF as a PNG, or all as a NIfTI volume" if data.startswith(b"GIF8") else ""
        raise DataError(f"neither a PNG nor a JPEG, TIFF or NPY image{hint}") from None
    with opened as image:
        tags = getattr(image, "tag_v2", {})
        tile = [int(tags.get(tag, 1)) for tag in _TILE]
        if max(image.width * image.height, tile[0] * tile[1]) > MAX_PIXELS:
            raise DataError(f"{image.height} x {image.width} pixels claimed; at most {MAX_PIXELS} are allowed")
        count = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # a JPEG with previews
        if count != 1:
            raise DataError(
                f"{count} frames or pages in one file, and nobody says what they are; expected one. Save each as a file, "
                "or all as a NIfTI volume"
            )
        yield image


def _pixels(image: Image.Image, data: bytes) -> Num[np.ndarray, "H W C"]:
    stored = str(image.tile) if isinstance(image, ImageFile.ImageFile) else ""  # names the file's own format, like RGB;16B
    tags = dict(getattr(image, "tag_v2", {}))
    bits = tags.get(_BITS, (1,))
    if image.mode == "RGB" and bits == (16, 16, 16):
        return _deep_colour(tags, data)
    deep = ";16" in stored or max(bits) > 8  # Pillow would keep the upper 8 bits only, or take 12 bits for 16
    if deep and not (image.mode.startswith("I;16") and bits in ((1,), (16,))):
        raise DataError("more than 8 bits a channel, and neither 16-bit grey nor, as TIFF, 16-bit RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        pixels = np.array(image).astype(np.uint16)[..., None]
        return 65535 - pixels if tags.get(_MEANING) == 0 else pixels  # of 8 bits, Pillow does it
    if image.mode not in _MODES:
        raise DataError(f"a pixel format that is not supported ({image.mode})")
    pixels = np.array(image.convert(_MODES[image.mode]))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_colour(tags: dict[int, Any], data: bytes) -> UInt16[np.ndarray, "H W 3"]:
    """RGB of 16 bits, of a TIFF, of which Pillow would keep the upper 8 bits only."""
    try:
        import imagecodecs
    except ImportError:
        raise DataError("16 bits a channel, which imagecodecs reads; install 'vaejax[medical]'") from None
    if tags.get(_ORIENTATION, 1) != 1 or tags.get(_PLANES, 1) != 1:
        raise DataError("16 bits a channel in colours that are turned by a tag, or in separate planes")
    return imagecodecs.tiff_decode(data)


def _of_array(values: np.ndarray) -> Num[np.ndarray, "H W C"]:
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[-1] > 4):
        raise DataError(f"an array of shape {values.shape}; expected [H, W] or [H, W, 1 to 4]")
    check_values(values)
    return native(values if values.ndim == 3 else values[..., None])


def to_channels(image: Num[np.ndarray, "H W C"], channels: int) -> Num[np.ndarray, "H W channels"]:
    """Grey repeated to RGB, RGB weighted to grey (ITU-R BT.601 luma, rounded), or the image as it is.

    Raises:
        DataError: any other change.
    """
    found = image.shape[-1]
    if found == channels:
        return image
    if (found, channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    if (found, channels) == (3, 1):
        return _round(image @ _LUMA, image.dtype)[..., None]
    raise DataError(
        f"expected {channels} channels, found {found}; only 1 to 3 and 3 to 1 can be converted. Change data.channels."
    )


def resize(image: Num[np.ndarray, "h w C"], size: tuple[int, int], policy: str) -> Num[np.ndarray, "H W C"]:
    """The image at `size` = (height, width), by antialiased bilinear interpolation; bit-exact where it has that size.

    Args:
        image: any real dtype, which is kept: values are rounded back to it.
        size: of the result.
        policy: "pad" (scaled to fit inside, zeros around, centred), "crop" (scaled to cover, centre kept), or "stretch".
    """
    if image.shape[:2] == tuple(size):
        return image
    planes = [_placed(plane.astype(np.float32), size, policy, Image.Resampling.BILINEAR) for plane in np.moveaxis(image, -1, 0)]
    return _round(np.stack(planes, axis=-1), image.dtype)


def resize_segmentation(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int], policy: str) -> UInt8[np.ndarray, "H W"]:
    """The class of every pixel after `resize` of its image: that of the nearest pixel; 0 where zeros are put around.

    Args:
        mask: classes, 0 for none.
        size: (height, width) of the result; a mask of that size is returned as it is.
        policy: as for `resize`.
    """
    return mask if mask.shape == tuple(size) else _placed(mask, size, policy, Image.Resampling.NEAREST)


def _placed(plane: np.ndarray, size: tuple[int, int], policy: str, filter: Image.Resampling) -> np.ndarray:
    """One plane, float32 or uint8, scaled and put where `policy` says."""
    (h, w), (height, width) = plane.shape, size
    box, inner = (0.0, 0.0, float(w), float(h)), size
    if policy == "crop":
        kept_h, kept_w = min(h, w * height / width), min(w, h * width / height)
        box = ((w - kept_w) / 2, (h - kept_h) / 2, (w + kept_w) / 2, (h + kept_h) / 2)
    if policy == "pad":
        scale = min(height / h, width / w)
        inner = (max(1, round(h * scale)), max(1, round(w * scale)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    result = np.zeros(size, plane.dtype)
    scaled = Image.fromarray(plane).resize(inner[::-1], filter, box=box)
    result[top : top + inner[0], left : left + inner[1]] = np.array(scaled)
    return result


def _round(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """To `dtype`, within its range: float32 sums may end a hair outside of it."""
    values = np.clip(values, 0, WHITE[dtype.name])
    return (values if dtype.kind == "f" else np.rint(values)).astype(dtype)
