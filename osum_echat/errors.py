"""The errors a reader can act on. Each message says where, what, and what would do."""


class OsumError(ValueError):
    """Something the user can put right: doors show it as one line and exit with 2."""


class DataError(OsumError):
    """A record that cannot be used."""


class ConfigError(OsumError):
    """A setting that cannot be used."""


class CheckpointError(OsumError):
    """A model directory or file that cannot be used."""


class InputError(OsumError):
    """What was asked for or handed in (a wav, a task name, an option) cannot be used."""
