"""Running counts over images of any size: what they have in common, in memory that grows by some 200 bytes an image."""

import collections
import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from vaejax.datasets.image import WHITE
from vaejax.datasets.splits import pixel_hash
from vaejax.datasets.stacks import DARK

EMPTY = 0.05
"""An image is mostly empty where fewer pixels than this share of them are content (see `stacks.DARK`)."""


@dataclasses.dataclass
class Tally:
    """Running counts over images."""

    images: int = 0
    pixels: int = 0
    black: int = 0
    constant: int = 0
    empty: int = 0
    binary: bool = True
    grey: bool = True
    on_bytes: bool = True
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    channels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    dtypes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    histograms: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    places: dict[bytes, tuple[str, int]] = dataclasses.field(default_factory=dict)
    groups: dict[bytes, list[tuple[str, int]]] = dataclasses.field(default_factory=dict)

    def add(self, split: str, i: int, image: Num[np.ndarray, "H W C"]) -> None:
        """Counts image `i` of a split, of dtype uint8, uint16 or float32 in [0, 1]."""
        white = WHITE[image.dtype.name]
        self.images += 1
        self.pixels += image.size
        self.black += int((image == 0).sum())
        self.constant += bool(image.min() == image.max())
        self.empty += bool((image > DARK * white).mean() < EMPTY)
        self.binary = self.binary and bool(((image == 0) | (image == white)).all())
        self.grey = self.grey and bool((image[..., :1] == image).all())
        self.on_bytes = self.on_bytes and _on_bytes(image)
        self.sizes[image.shape[:-1]] += 1
        self.channels[image.shape[-1]] += 1
        self.dtypes[image.dtype.name] += 1
        self.histograms[split] = self.histograms.get(split, 0) + np.bincount(_bins(image), minlength=256)
        self._compare(split, i, image)

    def _compare(self, split: str, i: int, image: Num[np.ndarray, "H W C"]) -> None:
        """Equal are images of one size and type with equal pixels."""
        digest = bytes.fromhex(pixel_hash(image))[:16]
        first = self.places.setdefault(digest, (split, i))
        if first != (split, i):
            self.groups.setdefault(digest, [first]).append((split, i))

    def facts(self) -> dict[str, Any]:
        """The counts as JSON values.

        `sizes`: rows of height, width and images; `channels`, `dtypes`: value -> images; `binary`: all pixels are black or
        white; `grey`: the channels of every image are equal; `on_bytes`: all are on the grid of 256 grey levels; `black`:
        share of the pixels; `constant`, `empty`: images; `histograms`: split -> pixels in each 256th from black to white;
        `equal`: `copies`, images that equal an earlier one, `groups` of them, `groups_across_splits`, and in `across_splits`
        (split, index) of the members of the first 100 of these.
        """
        across = [group for group in self.groups.values() if len({split for split, _ in group}) > 1]
        equal = {
            "copies": sum(len(group) - 1 for group in self.groups.values()),
            "groups": len(self.groups),
            "groups_across_splits": len(across),
            "across_splits": [[list(place) for place in group] for group in across[:100]],
        }
        return {
            "images": self.images,
            "sizes": [[*size, count] for size, count in self.sizes.most_common()],
            "channels": {str(number): count for number, count in self.channels.most_common()},
            "dtypes": dict(self.dtypes.most_common()),
            "binary": self.binary,
            "grey": self.grey,
            "on_bytes": self.on_bytes,
            "black": self.black / max(self.pixels, 1),
            "constant": self.constant,
            "empty": self.empty,
            "histograms": {split: counts.tolist() for split, counts in self.histograms.items()},
            "equal": equal,
        }


def _bins(image: Num[np.ndarray, "H W C"]) -> UInt8[np.ndarray, " n"]:
    """The 256th part of the range from black to white that every pixel is in."""
    if image.dtype == np.uint8:
        return image.ravel()
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8).ravel()
    return np.clip(image.ravel() * 256, 0, 255).astype(np.uint8)


def _on_bytes(image: Num[np.ndarray, "H W C"]) -> bool:
    """Whether all values are among 256 evenly spaced ones."""
    if image.dtype != np.float32:
        return image.dtype == np.uint8
    return bool((np.abs(image * 255 - np.rint(image * 255)) < 1e-3).all())
