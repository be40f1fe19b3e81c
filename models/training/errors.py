"""Errors of the training and evaluation programs that their user can act on."""

from __future__ import annotations


class TrainingError(Exception):
    """A folder, file or option that cannot be used; the message says what to do next."""
