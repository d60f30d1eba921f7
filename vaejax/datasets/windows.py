"""Windows and lookup tables: from the units of a modality to grey values in [0, 1], and back.

Sections named like C.11.2 are those of the DICOM standard, PS3.3.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Num

from vaejax.errors import DataError

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
"""What the numbers of a window mean (C.11.2.1.2, C.11.2.1.3)."""


class Scale(NamedTuple):
    """From a file's units to grey values in [0, 1], and back.

    Attributes:
        low: becomes 0; of a sigmoid, centre - width / 2.
        high: becomes 1; of a sigmoid, centre + width / 2.
        sigmoid: 1 / (1 + exp(-4 t)) of the distance t from the centre in widths (DICOM C.11.2.1.3.1), instead of a line.
    """

    low: float
    high: float
    sigmoid: bool = False

    def grey(self, values: Num[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Values in units as grey values; NaN is black."""
        known = np.nan_to_num(values.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        if self.sigmoid:
            line = (np.clip(known, -1e300, 1e300) - (self.low + self.high) / 2) / (self.high - self.low)
            return (0.5 + 0.5 * np.tanh(2.0 * line)).astype(np.float32)
        return ((np.clip(known, self.low, self.high) - self.low) / max(self.high - self.low, 1e-12)).astype(np.float32)

    def units(self, grey: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Grey values in units, NaN as it is. What lay beyond black or white is not known any more."""
        line = grey.astype(np.float64)
        if self.sigmoid:
            line = 0.5 + 0.5 * np.arctanh(np.clip(2.0 * line - 1.0, -0.9999, 0.9999))
        return (self.low + line * (self.high - self.low)).astype(np.float32)


class Lut(NamedTuple):
    """A lookup table (C.11.1, C.11.2): an input `first + i` becomes `values[i]`, one outside of them the nearest.

    Attributes:
        first: the input of the first value.
        values: of 0 to `white`.
        white: the largest value that its bits allow.
    """

    first: float
    values: Int[np.ndarray, " n"]
    white: int


def windowed(pixels: Num[np.ndarray, "..."], centre: float, width: float, function: str = "LINEAR") -> Float[np.ndarray, "..."]:
    """Pixels through a window to [0, 1] (C.11.2.1.2, C.11.2.1.3, with y from 0 to 1).

    Args:
        pixels: in the modality's units.
        centre: of the window, in these units.
        width: at least 1 for "LINEAR", above 0 for the others.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Raises:
        DataError: a width or function other than these.
    """
    if function not in FUNCTIONS or not width >= (1 if function == "LINEAR" else 0) or width == 0:
        raise DataError(f"a window {function} of width {width}; expected LINEAR of 1 or more, LINEAR_EXACT or SIGMOID above 0")
    x = pixels.astype(np.result_type(pixels.dtype, np.float32))  # 32-bit integers need float64
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (x - centre) / width)).astype(np.float32)  # 1 / (1 + exp(-4 t)), without overflow
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (x > centre).astype(np.float32)
    return np.clip((x - centre) / width + 0.5, 0, 1).astype(np.float32)


def looked_up(pixels: Num[np.ndarray, "..."], lut: Lut) -> Float[np.ndarray, "..."]:
    """Pixels through a VOI LUT to [0, 1] (C.11.2.1.1)."""
    return (look_up(pixels, lut) / lut.white).astype(np.float32)


def look_up(pixels: Num[np.ndarray, "..."], lut: Lut) -> Num[np.ndarray, "..."]:
    """Pixels through a table."""
    index = np.clip(np.rint(pixels.astype(np.float64) - lut.first), 0, len(lut.values) - 1)
    return lut.values[index.astype(np.int64)]
