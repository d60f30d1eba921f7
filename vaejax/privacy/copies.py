"""What is made of one file."""

from typing import NamedTuple

ACTIONS = ("kept", "replaced", "emptied", "removed", "private")
"""What was done to the fields of a header, in words: private ones are removed, too, and counted by themselves."""


class Copy(NamedTuple):
    """A file without what could tell whose it is.

    Attributes:
        content: of the new file.
        suffix: of its name.
        counts: of the fields of its header by what was done to them, see `ACTIONS`.
        notes: what else was done, and what to beware of; they hold no text of the file.
    """

    content: bytes
    suffix: str
    counts: dict[str, int]
    notes: tuple[str, ...] = ()
