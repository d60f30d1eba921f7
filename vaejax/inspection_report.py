"""What an inspection leaves: numbers, a page with pictures, a configuration to start from.

inspection.json    counts
inspection.html    the same with pictures; needs no other file
config.py          the suggested configuration; has the path of the images, as a configuration does
private/           paths of unreadable files and of equal images; mode 0700
"""

import re
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from vaejax import report, runs
from vaejax.datasets.image import WHITE, resize
from vaejax.errors import DataError
from vaejax.inspection import EXAMPLES, Inspection

SIDE = 96
"""Pixels of an example's longer side, at most."""

BARS = 64
"""Of the histogram: a divisor of 256. More would show the steps of scaled integers."""


def write(directory: epath.Path, found: Inspection, suggestion: str | None) -> None:
    """Writes all files.

    Args:
        directory: where; made if absent.
        found: what an inspection gave.
        suggestion: the text of a configuration file; None where there is none.

    Raises:
        DataError: the folder cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output={directory}: expected a folder to write to: {error}. Choose another.") from error
    runs.write_json(directory / "inspection.json", found.facts)
    runs.write_private(directory, "files.json", found.private)
    (directory / "config.py").unlink(missing_ok=True)  # of another inspection
    if suggestion is not None:
        runs.write_text(directory / "config.py", suggestion)
    values = {
        "facts": found.facts,
        "lines": summary(found.facts),
        "labels": list(found.facts["splits"]["train"]["labels"] or ()),
        "examples": [(label, report.url(_strips(images))) for label, images in found.examples.items() if images],
        "pictures": [(title, caption, report.url(figure)) for title, caption, figure in _pictures(found.facts)],
        "suggestion": None if suggestion is None else without_path(suggestion),
    }
    report.write_page(directory / "inspection.html", "inspection.html", values)


def summary(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts in lines of a table: what, and what was found."""
    of_files, equal = facts["headers"] or {}, facts["equal"]
    unreadable = f", {facts['unreadable']:,} unreadable" if facts["unreadable"] else ""
    spacings = {
        " x ".join("?" if mm is None else f"{mm:g}" for mm in row[:-1]): row[-1] for row in of_files.get("spacings", ())
    }
    alike = ", all equal" if facts["grey"] and set(facts["channels"]) != {"1"} else ""
    depth = ", black and white" if facts["binary"] else ", 256 grey levels" if facts["on_bytes"] else ""
    lines = {
        "source": f"{facts['source']} ({facts['why']})",
        "files": f"{facts['files']:,}" if facts["files"] else "",
        "images": f"{facts['images']:,}{unreadable}",
        "left out": f"{facts['left_out']:,} of labels other than data.normal" if facts["left_out"] else "",
        "patients": "unknown" if facts["patients"] is None else f"{facts['patients']:,}",
        "modality": _listed(of_files.get("modality", {})),
        "stored as": _listed(of_files.get("stored", {})),
        "spacing, mm": _listed(spacings),
        "size, pixels": _listed({" x ".join(map(str, row[:-1])): row[-1] for row in facts["sizes"]}),
        "channels": _listed(facts["channels"]) + alike,
        "depth": _listed(facts["dtypes"]) + depth,
        "black pixels": f"{facts['black']:.1%}",
        "equal images": f"{equal['copies']:,}; {equal['groups_across_splits']:,} groups across splits",
    }
    if facts["ranges"]:
        low, high = facts["ranges"]["mean"]
        lines["mean of an image"] = f"{low:.3f} to {high:.3f} of white, in training"
    return [(what, found) for what, found in lines.items() if found]


def _listed(counted: dict[str, int], most: int = 4) -> str:
    """What occurs, the most frequent first; counts where there are several."""
    if len(counted) == 1:
        return next(iter(counted))
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counted.items())[:most])
    return shown + (f" and {len(counted) - most:,} others" if len(counted) > most else "")


def without_path(suggestion: str) -> str:
    """Paths can carry names; the file has it."""
    return re.sub(r"(config\.data\.(?:path|masks|cache) = ).*", r'\1"(in config.py)"', suggestion)


def _strips(images: list[np.ndarray]) -> Image.Image:
    """Rows of examples, all of one size: scaled to fit, on black."""
    sides = [max(image.shape[:2]) for image in images]
    side, channels = min(max(sides), SIDE), max(image.shape[-1] for image in images)
    tiles = [_shown(image, side, channels) for image in images]
    tiles += [np.ones_like(tiles[0])] * (-len(tiles) % EXAMPLES)
    return report.grid(np.stack(tiles).reshape(-1, EXAMPLES, side, side, channels))


def _shown(image: np.ndarray, side: int, channels: int) -> np.ndarray:
    """Float [side, side, channels] in [0, 1]."""
    scaled = resize(image, (side, side), "pad").astype(np.float32) / np.float32(WHITE[image.dtype.name])
    return scaled if scaled.shape[-1] == channels else np.repeat(scaled[..., :1], channels, axis=-1)


def _pictures(facts: dict[str, Any]) -> list[tuple[str, str, Figure]]:
    """Title, caption and figure, in reading order."""
    pictures = [("Grey levels", f"Share of the pixels in each {BARS}th from black to white; logarithmic.", _grey_levels(facts))]
    if len(facts["sizes"]) > 1:
        pictures.append(("Sizes", "Area of a circle: images of that height and width.", _sizes(facts)))
    spacings = [row for row in (facts["headers"] or {}).get("spacings", []) if None not in row[:-1]]
    if len(spacings) > 1:
        pictures.append(
            ("Spacings", "Files by the distance between neighbouring voxels along each axis, mm.", _spacings(spacings))
        )
    return pictures


def _grey_levels(facts: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots()
    for split, counts in facts["histograms"].items():
        shares = np.array(counts).reshape(BARS, -1).sum(axis=1) / max(sum(counts), 1)
        axes.stairs(shares, np.linspace(0, 1, BARS + 1), label=split, linewidth=1.4)
    axes.set(xlabel="grey level (0 black, 1 white)", ylabel="share of pixels", yscale="log", xlim=(0, 1))
    axes.legend()
    return figure


def _sizes(facts: dict[str, Any]) -> Figure:
    heights, widths, counts = np.array([[row[0], row[1], row[-1]] for row in facts["sizes"]]).T
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(widths, heights, s=400 * counts / counts.max(), alpha=0.5, linewidths=0)
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    axes.set_aspect("equal", anchor="W")
    axes.margins(0.2)
    axes.locator_params(integer=True)
    return figure


def _spacings(spacings: list[list[float]]) -> Figure:
    *axes_of_space, counts = np.array(spacings).T
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    for axes, values, number in zip(figure.subplots(1, len(axes_of_space)), axes_of_space, range(1, 9), strict=False):
        axes.hist(values, bins=20, weights=counts, color="tab:gray")
        axes.set(xlabel=f"axis {number}, mm", ylabel="files")
    return figure
