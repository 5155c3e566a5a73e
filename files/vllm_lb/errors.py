# SPDX-License-Identifier: Apache-2.0
"""The exit codes, and the one exception that a command turns into a line and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_lb.causes import FailureCause

EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED = 1, 2, 75


class FailureError(Exception):
    """A foreseeable fault.

    Attributes:
        cause: the code for programs. The exception's text is the line for the operator.
        code: the exit code.
    """

    def __init__(self, cause: FailureCause, message: str, code: int = EXIT_FAILED) -> None:
        """Keep the cause, the line and the exit code."""
        super().__init__(message)
        self.cause = cause
        self.code = code


class PublishError(FailureError):
    """A change could not be published.

    Attributes:
        fault: nginx's complaint about the change.
    """

    def __init__(self, cause: FailureCause, message: str, fault: str) -> None:
        """Keep nginx's complaint beside the line."""
        super().__init__(cause, message)
        self.fault = fault


class RolledBackError(PublishError):
    """A change was not accepted; the previous configuration is live again."""
