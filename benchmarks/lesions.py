"""Planted lesions: faint blobs in the bodies of real images, with masks, fixed by (seed, index). Written before any training.

    python benchmarks/lesions.py    # shares of lesion pixels of a smooth phantom at every contrast

They are a stand-in for pathology: a test of whether a map points at what was changed, not of any disease.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

CONTRASTS = (0.05, 0.10, 0.20)
"""Change of the grey value at a blob's centre, as a share of the image range."""

RADII = (0.035, 0.10)
"""Semi-axes of a blob, as shares of the shorter side of the image."""

BLOBS = 3
"""At most as many in an image, and at least one."""

BODY = 0.1
"""A pixel belongs to the body where the image, smoothed over two pixels, is brighter than this."""


def body(image: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the body is."""
    return ndimage.gaussian_filter(image, 2.0) > BODY


def plant(
    image: Float[np.ndarray, "h w"], contrast: float, seed: int, index: int
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """One to three elliptic blobs with soft edges, brighter or darker, centred in the body.

    Places and shapes depend on (seed, index) and the body alone, and so are the same at every contrast. A blob that would
    leave the range at its centre has the other sign.

    Args:
        image: in [0, 1].
        contrast: change at a blob's centre.
        seed: of the whole set.
        index: the image's number in its split.

    Returns:
        The changed image, clipped to [0, 1], and where a blob has more than half of its contrast, in the body.
    """
    random = np.random.default_rng([seed, index])
    height, width = image.shape
    inside = body(image)
    places = np.argwhere(inside if inside.any() else np.ones_like(inside))
    rows, columns = np.mgrid[:height, :width]
    changed, mask = np.float64(image), np.zeros(image.shape, bool)
    for _ in range(random.integers(1, BLOBS + 1)):
        y, x = places[random.integers(len(places))]
        along, across = random.uniform(*RADII, size=2) * min(height, width)
        angle, sign = random.uniform(0.0, np.pi), random.choice((-1.0, 1.0))
        u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        distance = np.hypot(u / along, v / across)
        profile = 1.0 / (1.0 + np.exp(np.clip((distance - 1.0) * min(along, across) / 0.5, -50.0, 50.0)))
        sign = sign if 0.0 <= image[y, x] + sign * contrast <= 1.0 else -sign
        changed = changed + sign * contrast * profile * inside
        mask |= (profile > 0.5) & inside
    return np.clip(changed, 0.0, 1.0).astype(np.float32), mask


def plant_all(
    images: Float[np.ndarray, "n h w"], contrast: float, seed: int = 0
) -> tuple[Float[np.ndarray, "n h w"], Bool[np.ndarray, "n h w"]]:
    """`plant` for every image, numbered from 0."""
    pairs = [plant(image, contrast, seed, index) for index, image in enumerate(images)]
    return np.stack([changed for changed, _ in pairs]), np.stack([mask for _, mask in pairs])


def main() -> None:
    rows, columns = np.mgrid[:64, :64]
    phantom = np.float32(0.6 * (np.hypot(rows - 31.5, columns - 31.5) < 28))
    for contrast in CONTRASTS:
        changed, mask = plant_all(np.stack([phantom] * 100), contrast)
        inside = np.abs(changed - phantom)[mask].mean()
        print(f"contrast {contrast:.2f}: {100 * mask.mean():.2f} % of pixels, mean change inside {inside:.3f}")


if __name__ == "__main__":
    main()
