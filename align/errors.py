"""The exceptions of the project.

    AlignError                one clear line for the user: what, where, what to do next; exit code 1, no traceback
      ConfigError             a parameter is unknown, ill-typed or contradictory
      DataError               input that a stage cannot work with: a missing file, an unreadable table, nothing kept
        FormatError           a file says another schema_version or layout than this code reads
        CorruptError          bytes do not match the checksum written beside them
      GateError               a quality expectation failed: the observed value and the threshold
      TrainingError           training cannot go on
        NonFiniteLossError    the loss became inf or NaN; the last good checkpoint is kept
      ServiceError            a server (S3, MLflow) is away or refuses
        RefusedError          it is there, and will not: asking again is of no use
      LockedError             another process works on the same thing

Bad samples are rows with a reason code; only bad *runs* are exceptions.
"""


class AlignError(Exception):
    """Base of every error that a user can do something about."""


class ConfigError(AlignError):
    """A parameter is unknown, ill-typed or contradictory."""


class DataError(AlignError):
    """Input that a stage cannot work with."""


class FormatError(DataError):
    """A file has another schema_version or layout than this code reads."""


class CorruptError(DataError):
    """Bytes do not match the checksum written beside them."""


class GateError(AlignError):
    """A quality expectation failed."""


class TrainingError(AlignError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became inf or NaN; the last good checkpoint is kept."""


class ServiceError(AlignError):
    """A server is away or refuses."""


class RefusedError(ServiceError):
    """A server is there and refuses: asking again is of no use."""


class LockedError(AlignError):
    """Another process works on the same thing."""
