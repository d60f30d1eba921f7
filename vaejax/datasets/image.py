"""One image: decoded from a file, brought to the asked number of channels and size. Depth is never changed."""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vaejax.errors import DataError

WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_LUMA = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
# Pillow's mode -> the mode to convert it to
_MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}


def decode(path: Path) -> Num[np.ndarray, "H W C"]:
    """The pixels of a PNG or JPEG file, turned as its EXIF orientation says: uint8, or uint16 for 16-bit grey.

    Grey gives 1 channel, grey with alpha 2, RGB and palettes 3, RGB with alpha 4; black and white becomes 0 and 255.

    Raises:
        DataError: the bare reason why the file is unreadable.
    """
    try:
        data = path.read_bytes()
        if not data:
            raise DataError("an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                return _pixels(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("neither a PNG nor a JPEG image") from None
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    except Exception as error:  # damaged files make decoders raise almost anything
        raise DataError(f"{type(error).__name__}: {error}") from error


def _pixels(image: Image.Image) -> Num[np.ndarray, "H W C"]:
    stored = str(image.tile) if isinstance(image, ImageFile.ImageFile) else ""  # names the file's own format, like RGB;16B
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None]
    if ";16B" in stored:  # Pillow would keep the upper 8 bits only
        raise DataError("16 bits a channel in colour or with alpha; expected 8 bits, or 16-bit grey")
    if image.mode not in _MODES:
        raise DataError(f"a pixel format that is not supported ({image.mode})")
    pixels = np.array(image.convert(_MODES[image.mode]))
    return pixels if pixels.ndim == 3 else pixels[..., None]


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
