"""Results kept in memory: keyed by run key, bounded in bytes, the same object for an equal key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def run_key(kind: str, **fields: Any) -> str:
    """Digest of everything that determines a result; equal fields give an equal key on every
    machine.

    Not `hash()`: Python's hash of -1 and -2 is the same, and it changes from process to process.
    """
    text = json.dumps({"kind": kind, **fields}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def n_bytes(value: Any) -> int:
    """Memory of a result: its arrays, and a little for everything else."""
    if isinstance(value, np.ndarray):
        return value.nbytes + 128
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return 64 + sum(n_bytes(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, dict):
        return 64 + sum(n_bytes(key) + n_bytes(item) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return 64 + sum(n_bytes(item) for item in value)
    if isinstance(value, (str, bytes)):
        return 64 + len(value)
    return 32


def freeze(value: Any) -> None:
    """Make the arrays of a result read-only: several sessions hold the same object."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            freeze(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            freeze(item)


class ResultCache:
    """Least recently used results, at most `max_bytes` together. Safe under threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._items: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Any | None:
        with self._lock:
            entry = self._items.get(key)
            if entry is None:
                return None
            self._items.move_to_end(key)
            return entry[0]

    def keep(self, key: str, value: T) -> T:
        """Store `value` unless an equal key is stored already; returns the object to use from now
        on."""
        freeze(value)
        size = n_bytes(value)
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
            if size <= self.max_bytes:
                self._items[key] = (value, size)
                self._used += size
            while self._used > self.max_bytes:
                _, (_, freed) = self._items.popitem(last=False)
                self._used -= freed
        return value

    def put(self, key: str, value: Any) -> None:
        """Store `value` in place of what the key had."""
        with self._lock:
            _, freed = self._items.pop(key, (None, 0))
            self._used -= freed
        self.keep(key, value)

    @property
    def used_bytes(self) -> int:
        return self._used

    def __len__(self) -> int:
        return len(self._items)


class LruCache:
    """At most `max_items` made objects (loaded models); made once per key, also under threads."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self._items: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        # The lock is held while making: two sessions that ask for the same model load it once.
        with self._lock:
            if key not in self._items:
                self._items[key] = make()
                while len(self._items) > self.max_items:
                    self._items.popitem(last=False)
            self._items.move_to_end(key)
            return self._items[key]

    def __len__(self) -> int:
        return len(self._items)
