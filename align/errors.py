"""The exceptions of the project.

    AlignError                one clear line for the user: what, where, what to do next; exit code 1, no traceback
      ConfigError             a parameter is unknown, has the wrong type, or contradicts another
      DataError               a stage cannot work with its input: a missing file, an unreadable table, no pair kept
        FormatError           a file has a schema_version or layout that this code does not read
        CorruptError          bytes do not match their checksum
      GateError               a quality expectation failed; the message has the observed value and the threshold
      TrainingError           training cannot continue
        NonFiniteLossError    the loss became inf or NaN; the last good checkpoint is kept
      ServiceError            a server (S3, MLflow) is unavailable or refuses
        RefusedError          the server answers and refuses; a retry does not help
        StoppedWaitingError   this process was told to end while it waited for the server
      StoppedError            SIGTERM ended the command, which resumes when it is run again; exit code 143
      LockedError             another process is working on the same files

Bad samples are rows with a reason code; only bad *runs* are exceptions.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

#: The login in an address, with what is around it: `://<user>:<password>@`, `://TOKEN@`. The second form is a password
#: with a slash in it, which is not a port.
_USER = r"""://(?:[^\s/?#"<>]*@|[^\s/?#"<>@:\[]+:(?!\d*[/?#])[^\s"<>@]{0,256}@)"""
#: The parameter that opens a signed address without a login, as S3, Google, Azure and others write it:
#: `&X-Amz-Signature=`, `?sig=`.
_SIGNED = (
    r"[?&#](?:[Xx]-[A-Za-z]{2,4}-(?:[Ss]ignature|[Cc]redential|[Ss]ecurity-[Tt]oken)|[Ss]ignature|[Ss]ig|Key-Pair-Id|"
    r"(?:Google|AWS|OSS)Access(?:Key)?Id|(?:[Aa]ccess_?)?[Tt]oken|[Aa]pi_?[Kk]ey)="
)
#: Either of them. Python and JSON Schema read these regular expressions alike; they are linear.
LOGIN = rf"{_USER}|{_SIGNED}"


def without_logins(text: str) -> str:
    """The text with its addresses as everybody may see them: `http://<user>:<password>@host` becomes `http://host`."""
    text = re.sub(_USER, "://", text) if "@" in text else text
    return re.sub(rf"({_SIGNED})[^\s&#\"'<>]+", r"\1...", text) if "=" in text else text


class AlignError(Exception):
    """The base class of every error that a user can do something about. Its message holds no login of an address."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_logins(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(AlignError):
    """A parameter is unknown, has the wrong type, or contradicts another."""


class DataError(AlignError):
    """A stage cannot work with its input."""


class FormatError(DataError):
    """A file has a schema_version or layout that this code does not read."""


class CorruptError(DataError):
    """Bytes do not match their checksum."""


class GateError(AlignError):
    """A quality expectation failed."""


class TrainingError(AlignError):
    """Training cannot continue."""


class NonFiniteLossError(TrainingError):
    """The loss became inf or NaN; the last good checkpoint is kept."""


class StoppedError(AlignError):
    """SIGTERM ended the command. The exit code is a shell's for that: by it a scheduler tells a stop from a crash."""

    exit_code = 128 + signal.SIGTERM


class ServiceError(AlignError):
    """A server is unavailable or refuses."""


class RefusedError(ServiceError):
    """A server answers and refuses; a retry does not help."""


class StoppedWaitingError(ServiceError):
    """This process was told to end while it waited for a server: not the reason why the run ends, if it does."""

    exit_code = StoppedError.exit_code


class LockedError(AlignError):
    """Another process is working on the same files."""


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """Raises DataError for a panic of Rust code, which is no Exception: tokenizers does it over a slow pattern."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise DataError(f"the tokenizer fails: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """The message of any library's error, in one line of at most 300 characters, without logins."""
    return without_logins(" ".join(str(error).split()))[:300] or type(error).__name__


def first_line(error: Exception) -> str:
    """The first line of any library's error, at most 300 characters of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
