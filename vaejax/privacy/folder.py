"""A folder of DICOM, NIfTI, PNG, JPEG and TIFF files, at any depth, copied under opaque names; and the report on it.

OUT/                      mode 0700; it appears when it is whole
  <folder>/<id>.dcm       names are pseudonyms of the old paths; train, val and test keep theirs
  deidentification.json   what was done to each file, by its id
  deidentification.md     the same to read
OUT-names.json            mode 0600, not to be shared: id to old path

OUT-names.json appears just before OUT. Where OUT alone is missing, the same command begins again, with the same names.
"""

import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vaejax.datasets.source import NOTES
from vaejax.errors import DataError
from vaejax.privacy import pseudonyms
from vaejax.privacy.boxes import Box
from vaejax.privacy.copies import ACTIONS, Copy
from vaejax.progress import track

_SPLITS = {"train", "val", "valid", "validation", "test"}
"""Names of folders that stay: they say which split, and not who."""


def names_file(target: Path) -> Path:
    """Where the map from ids to old paths is written: beside the folder that is shared, not in it."""
    return target.with_name(f"{target.name}-names.json")


def deidentify(source: Path, target: Path, key: bytes, masks: Sequence[Box] = (), on_error: str = "stop") -> dict[str, Any]:
    """Copies what can be shared of `source` to `target`; returns the report.

    Args:
        source: a folder.
        target: a folder that does not exist or is empty, outside of `source`. Its file of names may be left of an interrupted
            call with the same source and key.
        key: of the pseudonyms, see `pseudonyms.read_key`.
        masks: boxes to blank.
        on_error: what to do with an image that cannot be shared: "stop", or "skip" it and say so in the report.

    Raises:
        DataError: no such folder, nothing in it, a target that is in use, or an image that cannot be shared.
    """
    source, target = Path(source), Path(target)
    _check(source, target)
    files, left_out = _files(source)
    names = {_opaque(path.relative_to(source), key): path for path in files}
    paths = {name.name: path.relative_to(source).as_posix() for name, path in names.items()}
    _check_names(names_file(target), paths)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:  # mode 0700
            folder = Path(temporary) / "copies"
            folder.mkdir(mode=0o700)
            report = _write(folder, names, key, masks, on_error) | {"left_out": left_out}
            (folder / "deidentification.json").write_text(json.dumps(report, indent=2) + "\n")
            (folder / "deidentification.md").write_text(page(report))
            _write_names(names_file(target), paths, Path(temporary))
            folder.rename(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}. Check free space and permissions.") from error
    return report


def _write(folder: Path, names: dict[Path, Path], key: bytes, masks: Sequence[Box], on_error: str) -> dict[str, Any]:
    """Writes what can be shared; returns what was done to each file, and why others were refused, by their ids.

    In the order of the ids: that of the old names could tell something of them.
    """
    report: dict[str, Any] = {"files": {}, "refused": {}}
    for name, path in track(sorted(names.items()), "de-identifying", len(names)):
        try:
            copy = _copy(path, key, name.name, masks)
        except DataError as error:
            if on_error == "stop":
                raise DataError(f"{path}: {error}. Mend or remove it, or leave such files out with --on-error=skip.") from None
            report["refused"][name.name] = str(error)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}{copy.suffix}").write_bytes(copy.content)
        report["files"][name.name] = {"kind": copy.suffix, **copy.counts, "notes": copy.notes}
    return report


def _check(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise DataError(f"{source}: expected a folder, found {'a file' if source.exists() else 'none'}.")
    try:
        import imagecodecs  # noqa: F401  # whether they are there
        import nibabel  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise DataError(f"de-identification needs {error.name}. Install 'vaejax[medical]'.") from error
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise DataError(f"{target}: expected a folder outside of {source}. Choose another one.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: expected nothing there, found something. Remove it or choose another folder.")
    if not target.parent.is_dir():
        raise DataError(f"{target.parent}: expected a folder to write to, found none. Make it.")


def _files(source: Path) -> tuple[list[Path], int]:
    """All files but hidden ones and notes, sorted by path; and how many these are."""
    found = sorted((path for path in source.rglob("*") if not path.is_dir()), key=lambda path: path.as_posix())
    hidden = [path for path in found if any(part.startswith(".") for part in path.relative_to(source).parts)]
    files = [path for path in found if path not in set(hidden) and path.suffix.lower() not in NOTES]
    if not files:
        raise DataError(f"{source}: expected images, found none.")
    return files, len(found) - len(files)


def _opaque(path: Path, key: bytes) -> Path:
    """The new path, without a suffix: a pseudonym for every folder and for the file."""
    parts = [
        path.parts[0].lower() if depth == 1 and len(path.parts) > 1 and path.parts[0].lower() in _SPLITS
        else pseudonyms.pseudonym(key, "path", "/".join(path.parts[:depth]))
        for depth in range(1, len(path.parts) + 1)
    ]  # fmt: skip
    return Path(*parts)


def _copy(path: Path, key: bytes, name: str, masks: Sequence[Box]) -> Copy:
    """What is made of a file, by its content. Raises DataError, the bare reason, where it cannot be shared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of pydicom quote the header
        try:
            head = _head(path)
            if head[128:132] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0"):  # which may begin like a TIFF file
                from vaejax.privacy import dicom_file

                return dicom_file.copy(path, key, name, masks)
            if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff" or head[:4] in (b"II*\0", b"MM\0*"):
                from vaejax.privacy import pictures

                return pictures.copy(path, masks)
            if path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img")):
                from vaejax.privacy import nifti_file

                return nifti_file.copy(path)
        except DataError:
            raise
        except Exception as error:  # damaged files make decoders raise almost anything, and quote it
            raise DataError(f"a damaged file ({type(error).__name__})") from None
    raise DataError("no DICOM, NIfTI, PNG, JPEG or TIFF file")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError as error:
        raise DataError(error.strerror or "cannot be read") from None


def _check_names(file: Path, names: dict[str, str]) -> None:
    """Whether nothing is lost where `names` are written to `file`: they may be there, of a call that was interrupted."""
    try:
        same = not file.exists() or json.loads(file.read_text()) == names
    except (OSError, ValueError):
        same = False
    if not same:
        raise DataError(
            f"{file}: expected nothing there, found the names of other files, or of another key: the only way back to them. "
            "Move it away, or choose another folder."
        )


def _write_names(file: Path, names: dict[str, str], temporary: Path) -> None:
    """Whole or not at all, by way of a private folder beside."""
    with os.fdopen(os.open(temporary / "names", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(names, stream, indent=2)
    (temporary / "names").replace(file)


# --- the report


def totals(report: dict[str, Any]) -> Iterator[tuple[str, int, Counter[str]]]:
    """Of each kind of file: how many were copied, and what was done to the fields of their headers."""
    for kind in sorted({facts["kind"] for facts in report["files"].values()}):
        facts = [facts for facts in report["files"].values() if facts["kind"] == kind]
        yield kind, len(facts), Counter({action: sum(fact.get(action, 0) for fact in facts) for action in ACTIONS})


def remarks(report: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Each note, and each reason for a refusal, with the number of files; the most frequent first."""
    notes = Counter(note for facts in report["files"].values() for note in facts["notes"])
    yield from notes.most_common()
    yield from Counter(f"refused: {reason}" for reason in report["refused"].values()).most_common()
    if report["left_out"]:
        yield "left out: hidden files and notes", report["left_out"]


def page(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["# De-identification", "", "Fields of headers, by what was done to them; ids are the names of the files.", ""]
    lines += [_row("kind", "files", *ACTIONS), _row(*["---"] * (2 + len(ACTIONS)))]
    lines += [_row(kind, n, *(counts[action] for action in ACTIONS)) for kind, n, counts in totals(report)]
    lines += ["", _row("remark", "files"), _row("---", "---"), *(_row(*remark) for remark in remarks(report))]
    lines += ["", _row("id", *ACTIONS, "notes"), _row(*["---"] * (2 + len(ACTIONS)))]
    for name, facts in report["files"].items():
        lines.append(_row(name, *(facts.get(action, 0) for action in ACTIONS), "; ".join(facts["notes"])))
    lines += [_row(name, *[""] * len(ACTIONS), f"refused: {reason}") for name, reason in report["refused"].items()]
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
