"""Boxes of pixels that are blanked, since text is burned into them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from vaejax.errors import ConfigError, DataError

PICTURE = "PICTURE"
"""What stands for PNG, JPEG and TIFF files where DICOM files have a modality."""

_FORM = re.compile(r"(?:(?P<kind>[A-Z]{2,16}):)?(?:(?P<numbers>\d{1,6}(?:,\d{1,6}){3})|(?P<none>none))")


class Box(NamedTuple):
    """What to blank in images of a kind.

    Attributes:
        kind: a modality, such as "US", or `PICTURE`; None for all images.
        area: first row, first column, height, width; None where somebody has looked and there is nothing to blank.
    """

    kind: str | None
    area: tuple[int, int, int, int] | None


def parse(text: str) -> Box:
    """A box as it is written on the command line: 'US:0,0,40,640', '0,0,40,640', or 'US:none'.

    Raises:
        ConfigError: it is written otherwise.
    """
    found = _FORM.fullmatch(text)
    if not found or (found["none"] and not found["kind"]):
        raise ConfigError(
            f"--box={text}: expected [KIND:]row,column,height,width or KIND:none, KIND a modality such as US or {PICTURE}."
        )
    if found["none"]:
        return Box(found["kind"], None)
    row, column, height, width = (int(number) for number in found["numbers"].split(","))
    if not height or not width:
        raise ConfigError(f"--box={text}: expected a height and a width of at least 1.")
    return Box(found["kind"], (row, column, height, width))


def for_kind(boxes: Sequence[Box], kind: str) -> list[tuple[int, int, int, int]] | None:
    """The areas to blank in images of a kind; None where nobody said anything of it."""
    told = [box for box in boxes if box.kind in (None, kind)]
    return [box.area for box in told if box.area] if told else None


def blank(
    pixels: Num[np.ndarray, "... h w c"], areas: Sequence[tuple[int, int, int, int]], bright: bool = False
) -> Num[np.ndarray, "... h w c"]:
    """A copy with each area at the smallest value of all pixels, or at the largest where it is that which is `bright`.

    A box may reach over the right and the lower edge.

    Raises:
        DataError: a box that begins outside of the image.
    """
    result = pixels.copy()
    height, width = pixels.shape[-3:-1]
    for row, column, rows, columns in areas:
        if row >= height or column >= width:
            raise DataError(f"a box that begins at row {row}, column {column}, outside of {height} x {width} pixels")
        result[..., row : row + rows, column : column + columns, :] = pixels.max() if bright else pixels.min()
    return result
