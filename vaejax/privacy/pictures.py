"""PNG, JPEG and TIFF files for sharing: their pixels, and of all else the orientation of a JPEG file."""

import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
from jaxtyping import Num
from PIL import Image, ImageOps

from vaejax.datasets.image import decode
from vaejax.datasets.source import size_of
from vaejax.errors import DataError
from vaejax.privacy import boxes, streams
from vaejax.privacy.boxes import Box
from vaejax.privacy.copies import Copy

MAX_BYTES = 512 * 2**20
"""Of a file, and of the pixels that it claims."""

_LOOK = "a picture, of which nobody says whether text is burned into it: look"
_ORIENTATION = 0x0112
_TIFF = (b"II*\0", b"MM\0*")


def copy(path: Path, masks: Sequence[Box]) -> Copy:
    """The picture alone.

    A JPEG file keeps its code words and, in an EXIF segment made anew, its orientation; with boxes to blank, which count in
    the picture as stored, it becomes a PNG file, turned. A PNG file is written anew in its depth, palettes as RGB. A TIFF file
    becomes a PNG file of the pixels that `vaejax.datasets.image.decode` gives, turned before boxes are blanked. Colour
    profiles go: their texts can name people.

    Args:
        path: the file.
        masks: boxes to blank.

    Raises:
        DataError: the bare reason why the file cannot be shared.
    """
    size_of(path, MAX_BYTES)
    content = path.read_bytes()
    areas = boxes.for_kind(masks, boxes.PICTURE)
    notes = ["boxes of pixels blanked"] if areas else [_LOOK] if areas is None else []
    if content[:2] == b"\xff\xd8" and not areas:
        return Copy(_jpeg(content), ".jpg", {}, tuple(notes))
    pixels = decode(path) if content[:4] in _TIFF else _decoded(content)
    if areas:
        pixels = boxes.blank(pixels, areas)
    if content[:2] == b"\xff\xd8":
        pixels = _turned(pixels, _orientation(content))
        notes.append("JPEG written as PNG")
    elif content[:4] in _TIFF:
        notes.append("TIFF written as PNG")
    png = bytes(imagecodecs.png_encode(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    return Copy(png, ".png", {}, tuple(notes))


def _jpeg(content: bytes) -> bytes:
    """The stream without its application data, but for the orientation."""
    clean, turned = streams.jpeg(content), _orientation(content)
    if turned == 1:
        return clean
    tiff = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, _ORIENTATION, 3, 1, turned, 0, 0)
    return clean[:2] + struct.pack(">2sH", b"\xff\xe1", 2 + 6 + len(tiff)) + b"Exif\0\0" + tiff + clean[2:]


def _orientation(content: bytes) -> int:
    """How a JPEG stream is to be turned: 1 to 8, 1 for not at all."""
    exif = Image.Exif()
    try:
        exif.load(next((segment for n, segment in streams.application(content) if n == 1 and segment[:4] == b"Exif"), b""))
        turned = int(exif.get(_ORIENTATION, 1))
    except DataError:
        raise
    except Exception:  # damaged EXIF makes Pillow raise almost anything; viewers show such a picture unturned
        return 1
    return turned if 1 <= turned <= 8 else 1


def _turned(pixels: Num[np.ndarray, "h w c"], orientation: int) -> Num[np.ndarray, "H W c"]:
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.getexif()[_ORIENTATION] = orientation
    pixels = np.array(ImageOps.exif_transpose(image))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _decoded(content: bytes) -> Num[np.ndarray, "h w c"]:
    """The pixels of a PNG or JPEG file in its depth, not turned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            claimed = image.width * image.height * 8
            if claimed > MAX_BYTES:
                raise DataError(f"{claimed} bytes of pixels claimed; at most {MAX_BYTES} are allowed")
            if image.format == "PNG" and (count := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{count} frames in one file; expected one. Save each as a file")
            if image.format != "PNG" and image.mode not in ("L", "RGB"):
                raise DataError("a JPEG picture neither grey nor RGB, which cannot be blanked")
            pixels = imagecodecs.png_decode(content) if image.format == "PNG" else np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
