"""The root of every error that edgewright raises for a reason outside its own code.

    EdgewrightError                  message, remedy, exit_code
    ├── profiles: ProfileError       unknown or invalid profile
    ├── runtimes: RuntimeFailure     see runtimes/errors.py
    ├── compiler: CompilerError      see compiler/errors.py
    ├── device_agent: AgentError     see device_agent/errors.py
    └── hw_benchmarks: BenchError    see hw_benchmarks/errors.py

Our own mistakes stay ``ValueError`` or ``assert`` and end as exit code 70.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes of all three commands (a contract with scripts and pipelines)."""

    DONE = 0
    GATE = 1  # a check or gate said no
    USAGE = 2
    UNSUPPORTED = 3  # the model cannot be expressed
    MISSING = 4  # an extra, a runtime or a device is missing
    TRUST = 5  # a signature, digest or trust rule failed
    BUG = 70


class EdgewrightError(Exception):
    """A failure that a user can act on.

    Args:
        message: what failed and where (node, tensor, file offset), found against expected.
        remedy: one imperative sentence that tells the way out.
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (runtimes/isolation.py); BaseException would drop the keyword argument.
        return (_rebuild, (type(self), self.message, self.remedy, self.__dict__))


def _rebuild(cls: type[EdgewrightError], message: str, remedy: str, state: dict[str, object]) -> EdgewrightError:
    error = cls.__new__(cls)
    EdgewrightError.__init__(error, message, remedy=remedy)
    error.__dict__.update(state)
    return error


class ProfileError(EdgewrightError):
    """A profile is unknown, or its file does not follow the schema."""


class RegistryMiss(EdgewrightError):
    """A name that no registered thing carries."""
