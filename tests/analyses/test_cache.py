"""Run keys and bounded caches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from workbench.cache import LruCache, ResultCache, n_bytes, run_key
from workbench.results import BlockEvidence


def test_keys_tell_close_values_apart():
    keys = [
        run_key("erf", y=y, x=x, scan=scan)
        for y in (-2, -1, 0, 1)
        for x in (-2, -1, None)
        for scan in ("a", "b")
    ]
    assert len(set(keys)) == len(keys)
    assert run_key("erf", y=1, x=2) == run_key("erf", x=2, y=1)
    assert run_key("erf", y=1) != run_key("scan", y=1)


def test_memory_is_bounded_and_the_oldest_goes():
    cache = ResultCache(10_000)
    for i in range(5):
        cache.keep(str(i), np.zeros(3000, dtype=np.uint8))
        assert cache.used_bytes <= 10_000
    assert len(cache) == 3 and cache.get("0") is None
    cache.get("2")
    cache.keep("5", np.zeros(3000, dtype=np.uint8))
    assert cache.get("2") is not None and cache.get("3") is None


def test_what_is_too_large_is_used_but_not_kept():
    cache = ResultCache(1000)
    value = np.zeros(2000, dtype=np.uint8)
    assert cache.keep("a", value) is value
    assert cache.get("a") is None and cache.used_bytes == 0


def test_the_first_value_of_a_key_stays():
    cache = ResultCache(10_000)
    first, second = np.zeros(3), np.ones(3)
    assert cache.keep("a", first) is first
    assert cache.keep("a", second) is first


def test_arrays_inside_results_are_counted_and_frozen():
    evidence = BlockEvidence(
        stage=1, block=1, scan=0.0, conv=0.0, residual=0.0, total=0.0, error=0.0
    )
    nested = ((np.zeros(100), evidence), "word")
    assert n_bytes(nested) > 800
    ResultCache(10_000).keep("a", nested)
    assert not nested[0][0].flags.writeable


def test_a_model_is_loaded_once():
    cache = LruCache(2)
    made: list[str] = []
    started = threading.Barrier(4)

    def load(_: int) -> str:
        started.wait()
        return cache.get("tiny", lambda: made.append("tiny") or "model")

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(load, range(4))) == {"model"}
    assert made == ["tiny"]
    for key in ("small", "base"):
        cache.get(key, lambda key=key: key)
    assert len(cache) == 2
    cache.get("tiny", lambda: made.append("again") or "model")
    assert made == ["tiny", "again"]
