"""Errors of the agent, split by what a person can do about them.

AgentError                    the base (exit 2)
├── ConfigError               the configuration file is missing or wrong (exit 2)
├── NotInstalled              a model has no usable release on this device (exit 4)
├── NetworkError              a repository or collector does not answer, or too slowly (exit 4); trying again may help
├── TrustError                a signature, digest, expiry or anti-rollback rule failed (exit 5)
├── ReleaseRejected           the release failed its trial on this device (exit 1); the old one stays
├── NoWayBack                 a rollback was asked for and nothing good is kept (exit 1)
├── Busy                      another update of this device is running (exit 1)
└── RequestError              an inference request that cannot be answered; carries an HTTP status
    ├── Overloaded            too many requests wait already (503)
    └── DeadlineExceeded      the answer would come, or came, too late (504)
"""

from __future__ import annotations

from profiles.errors import EdgewrightError, ExitCode


class AgentError(EdgewrightError):
    pass


class ConfigError(AgentError):
    pass


class NotInstalled(AgentError):
    exit_code = ExitCode.MISSING


class NetworkError(AgentError):
    exit_code = ExitCode.MISSING


class TrustError(AgentError):
    exit_code = ExitCode.TRUST


class ReleaseRejected(AgentError):
    exit_code = ExitCode.GATE


class NoWayBack(AgentError):
    exit_code = ExitCode.GATE


class Busy(AgentError):
    exit_code = ExitCode.GATE


class RequestError(AgentError):
    """``status`` is the HTTP status that the server answers with."""

    def __init__(self, message: str, *, remedy: str, status: int = 400) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class Overloaded(RequestError):
    def __init__(self, message: str, *, remedy: str, status: int = 503) -> None:
        super().__init__(message, remedy=remedy, status=status)


class DeadlineExceeded(RequestError):
    def __init__(self, message: str, *, remedy: str, status: int = 504) -> None:
        super().__init__(message, remedy=remedy, status=status)
