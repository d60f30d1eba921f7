"""Windows and lookup tables: from the units of a modality to grey values in [0, 1], and back.

Sections named like C.11.2 are those of the DICOM standard, PS3.3.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Num

from vaejax.errors import DataError

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
"""What the numbers of a window mean (C.11.2.1.2, C.11.2.1.3)."""


class Scale(NamedTuple):
    """From a file's units to grey values in [0, 1], and back.

    Attributes:
        low: becomes 0; of a sigmoid, centre - width / 2.
        high: becomes 1; of a sigmoid, centre + width / 2. Where it is `low`, only what is above is white.
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
        if self.low == self.high:
            return (known > self.low).astype(np.float32)
        return ((np.clip(known, self.low, self.high) - self.low) / (self.high - self.low)).astype(np.float32)

    def units(self, grey: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Grey values in units, NaN as it is. What lay beyond black or white is not known any more."""
        line = grey.astype(np.float64)
        if self.sigmoid:
            line = 0.5 + 0.5 * np.arctanh(np.clip(2.0 * line - 1.0, -0.9999, 0.9999))
        return (self.low + line * (self.high - self.low)).astype(np.float32)


class Lut(NamedTuple):
    """A lookup table (C.11.1, C.11.2.1.1): an input `first + i` becomes `values[i]`, one outside of them the nearest.

    Attributes:
        first: the input of the first value.
        values: of 0 to `white`.
        white: the largest value that its bits allow.
    """

    first: float
    values: Int[np.ndarray, " n"]
    white: int

    @property
    def rises(self) -> bool:
        """Whether larger inputs give larger values, or the same, so that `units` leads back."""
        return bool((self.values[1:] >= self.values[:-1]).all()) and bool(self.values[0] < self.values[-1])

    def look_up(self, inputs: Num[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """The values of inputs; NaN counts as the first input."""
        index = np.nan_to_num(np.rint(inputs.astype(np.float64) - self.first), nan=0.0)
        return self.values[np.clip(index, 0, len(self.values) - 1).astype(np.int64)]

    def grey(self, values: Num[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Values in units as grey values; NaN is black."""
        return np.where(np.isnan(values), 0.0, self.look_up(values) / self.white).astype(np.float32)

    def units(self, grey: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Grey values in units, between those of the inputs on a line; NaN as it is. The table has to rise."""
        inputs = self.first + np.arange(len(self.values))
        return np.interp(grey.astype(np.float64) * self.white, self.values, inputs).astype(np.float32)


def window(centre: float, width: float, function: str = "LINEAR") -> Scale:
    """A window of the standard (C.11.2.1.2, C.11.2.1.3, with y from 0 to 1).

    Args:
        centre: in the modality's units. The middle of "LINEAR" lies half a unit below, and black and white width - 1 apart.
        width: at least 1 for "LINEAR", above 0 for the others.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Raises:
        DataError: a width or function other than these.
    """
    if function not in FUNCTIONS or not width >= (1 if function == "LINEAR" else 0) or width == 0:
        raise DataError(f"a window {function} of width {width}; expected LINEAR of 1 or more, LINEAR_EXACT or SIGMOID above 0")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return Scale(centre - width / 2, centre + width / 2, function == "SIGMOID")
