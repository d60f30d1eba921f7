"""New names from old ones by a secret key: the same old name always gives the same new one, and nobody finds the way back.

Every name is HMAC-SHA256 (RFC 2104) of what kind of name it is and of the old one. Who has the key can test a guess, so the
key is as secret as the names; it is read, used, and neither kept nor shown.
"""

import hmac
import os
import uuid
from pathlib import Path

from vaejax.errors import ConfigError

VARIABLE = "VAEJAX_KEY"
"""The environment variable that holds the key where no file does."""

MIN_BYTES = 16
"""Of a key: shorter ones can be tried out."""

MAX_DAYS = 3652
"""The farthest that dates are moved back: ten years."""

_GENERATE = 'Make one with: python -c "import secrets; print(secrets.token_hex(32))"'


def read_key(path: str | None) -> bytes:
    """The key: the contents of a file, or of the environment variable `VAEJAX_KEY`, without white space around them.

    Raises:
        ConfigError: there is no key, or it is shorter than `MIN_BYTES`.
    """
    if path is None:
        name, key = VARIABLE, os.environ.get(VARIABLE, "").strip().encode()
        if not key:
            raise ConfigError(f"expected a secret key in --key-file=FILE or the variable {VARIABLE}, found none. {_GENERATE}")
    else:
        name = f"--key-file={path}"
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}. {_GENERATE}") from None
    if len(key) < MIN_BYTES:
        raise ConfigError(f"{name}: expected a key of at least {MIN_BYTES} bytes, found {len(key)}. {_GENERATE}")
    return key


def pseudonym(key: bytes, kind: str, old: str) -> str:
    """32 hexadecimal digits."""
    return _digest(key, kind, old)[:16].hex()


def uid(key: bytes, old: str) -> str:
    """A UID under 2.25 (PS3.5 B.2): a UUID as a whole number."""
    return f"2.25.{uuid.UUID(bytes=_digest(key, 'uid', old)[:16], version=4).int}"


def days(key: bytes, patient: str) -> int:
    """How far all dates of a patient are moved back: 1 to `MAX_DAYS` days."""
    return 1 + int.from_bytes(_digest(key, "days", patient)[:8]) % MAX_DAYS


def _digest(key: bytes, kind: str, old: str) -> bytes:
    return hmac.digest(key, f"{kind}\0{old}".encode("utf-8", "surrogateescape"), "sha256")
