"""Errors that a user of the workbench can act on.

Every message says what was given, what is allowed and what to do next. The page and the command
line show it as it is; any other exception is a defect of ours and is logged with its traceback.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base class of all errors with a message written for the user."""


class BadInputError(WorkbenchError):
    """A photo, a name or a number that cannot be used."""


class NotAvailableError(WorkbenchError):
    """Something known that is not here: weights that do not ship, a device, an optional package."""


class CancelledError(WorkbenchError):
    """The user pressed Stop. What was finished before is kept."""
