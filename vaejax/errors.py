"""What a user can do wrong, one class a kind: the command line prints the message alone, without a traceback.

Every message names the file or the field, what was expected, what was found, and what to do.
"""


class VaejaxError(Exception):
    """Base class of every error that vaejax raises on purpose."""


class ConfigError(VaejaxError):
    """A configuration value is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(VaejaxError):
    """Images cannot be found, read or used as asked."""


class CheckpointError(VaejaxError):
    """A checkpoint cannot be written, or none of those found can be used."""


class TrainingError(VaejaxError):
    """A run cannot start, go on, or be extended as asked."""


class StorageError(VaejaxError):
    """A file or folder cannot lie, be read or be written where a path or URL says."""


class FamilyError(VaejaxError):
    """A model's family has no such thing as what is asked for, or not with what was trained."""


class Terminated(BaseException):
    """The process was asked to stop (SIGTERM); like KeyboardInterrupt no error, so that nothing takes it for one."""
