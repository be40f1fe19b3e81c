"""Results as files, and back: JSON for words and numbers, npz for arrays, one zip for all.

The same results give the same bytes: names are sorted, the time is fixed, nothing is compressed, so
that no version of a compressor matters. Reading needs no torch, runs no code from the file and
checks sizes, names and types before anything is built: an archive is as hostile as a photo.

A zip holds `manifest.json` and, for each named result, `NAME.json` and `NAME.npz`; beside them are
pictures (`NAME.png`) and tables (`NAME.csv`, `NAME.tex`), where they were given. In the JSON
an array is `{"$array": key in the npz, "dtype", "shape"}`, a nested record `{"$type": class name,
...}`, and nan or infinity `{"$float": "nan"}`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import types
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench import __version__, kernel_results, profiler_results, results
from workbench.errors import BadInputError

SCHEMA = 2
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MEMBER = re.compile(rf"{NAME.pattern}\.(json|npz|png|csv|tex)")
ARRAY_MEMBER = re.compile(r"[A-Za-z0-9_.-]{1,200}\.npy")
# The earliest time a zip can hold: a fixed one, so that equal results give equal bytes.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
MAX_MEMBERS = 1024  # of an archive, or of the arrays of one result: a sweep has one per point
MAX_JSON_BYTES = 8 * 2**20
MAX_DEPTH = 8
NUMBER_KINDS = "biuf"  # numpy kinds: bool, integers, floats


@dataclass(frozen=True, slots=True)
class Bundle:
    results: dict[str, Any]  # name -> one of the types of workbench.results
    extra: dict[str, Any]  # plain values beside them
    pictures: dict[str, bytes]  # name -> PNG
    workbench_version: str
    tables: dict[str, bytes] = field(default_factory=dict)  # name -> CSV
    latex: dict[str, bytes] = field(default_factory=dict)  # name -> rows of a LaTeX table


def save_results(
    path: Path,
    named: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    tables: Mapping[str, bytes] | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(named, extra, pictures, tables))


def load_results(path: Path) -> Bundle:
    try:
        return unpack(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path.name} cannot be read: {error}.") from error


def pack(
    named: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    tables: Mapping[str, bytes] | None = None,
) -> bytes:
    """One zip of all results."""
    members = {}
    for name, result in named.items():
        _check_name(name)
        members[f"{name}.json"] = to_json(result)
        members[f"{name}.npz"] = to_npz(result)
    for name, data in (pictures or {}).items():
        _check_name(name.removesuffix(".png"))
        members[f"{name.removesuffix('.png')}.png"] = data
    for name, data in (tables or {}).items():
        suffix = ".tex" if name.endswith(".tex") else ".csv"
        _check_name(name.removesuffix(suffix))
        members[f"{name.removesuffix(suffix)}{suffix}"] = data
    manifest = {
        "schema": SCHEMA,
        "workbench": __version__,
        "results": {name: type(result).__name__ for name, result in named.items()},
        "extra": dict(extra or {}),
    }
    members["manifest.json"] = _dump(_encode(manifest, {}))
    return _zip(members)


def unpack(data: bytes) -> Bundle:
    """Results of a zip made by `pack`; BadInputError says what is wrong with any other."""
    members = _unzip(data, "The archive", MEMBER)
    if "manifest.json" not in members:
        raise BadInputError(
            "The archive has no manifest.json: it is not an export of the workbench."
        )
    manifest = _parse(members["manifest.json"], "manifest.json")
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise BadInputError(
            f"The archive has format {schema!r}; this workbench reads format {SCHEMA}. "
            "Export it again with this version."
        )
    plain = _decode(manifest, {}, {}, "manifest.json", 0)
    version = plain.get("workbench")
    listed, extra = plain.get("results"), plain.get("extra")
    if not (isinstance(version, str) and isinstance(listed, dict) and isinstance(extra, dict)):
        raise _damaged("manifest.json")
    loaded = {name: _load_one(name, members) for name in listed}
    pictures, tables, latex = (
        {k.removesuffix(suffix): v for k, v in members.items() if k.endswith(suffix)}
        for suffix in (".png", ".csv", ".tex")
    )
    return Bundle(loaded, extra, pictures, version, tables, latex)


def to_json(result: Any) -> bytes:
    """Readable JSON of one result; arrays are named, not written out."""
    return _dump(_encode(result, {}))


def to_npz(result: Any) -> bytes:
    """Every array of one result, for `numpy.load`."""
    arrays: dict[str, np.ndarray] = {}
    _encode(result, arrays)
    members = {}
    for key, array in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        members[f"{key}.npy"] = file.getvalue()
    return _zip(members)


def _encode(value: Any, arrays: dict[str, np.ndarray], key: str = "") -> Any:
    """JSON form of a value; its arrays are collected in `arrays` under the path of their field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        record = {n: _encode(getattr(value, n), arrays, f"{key}.{n}".strip(".")) for n in names}
        return {"$type": type(value).__name__, **record}
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in NUMBER_KINDS:
            raise TypeError(f"{key}: arrays of {value.dtype} cannot be exported")
        arrays[key] = value
        return {"$array": key, "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {str(k): _encode(v, arrays, f"{key}.{k}".strip(".")) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_encode(v, arrays, f"{key}.{i}".strip(".")) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{key}: a {type(value).__name__} cannot be exported")


def _decode(
    value: Any, arrays: Mapping[str, np.ndarray], kinds: Mapping[str, type], where: str, depth: int
) -> Any:
    """Inverse of `_encode`: lists become tuples, records become the classes of `kinds`."""
    if depth > MAX_DEPTH:
        raise _damaged(where)
    if isinstance(value, list):
        return tuple(_decode(v, arrays, kinds, where, depth + 1) for v in value)
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        if value["$float"] not in ("nan", "inf", "-inf"):
            raise _damaged(where)
        return float(value["$float"])
    if "$array" in value:
        array = arrays.get(value["$array"]) if isinstance(value["$array"], str) else None
        if array is None:
            raise BadInputError(f"{where} names a missing array. Export the results again.")
        return array
    names = [name for name in value if name != "$type"]
    fields = {n: _decode(value[n], arrays, kinds, where, depth + 1) for n in names}
    if "$type" not in value:
        return fields
    kind = kinds.get(value["$type"]) if isinstance(value["$type"], str) else None
    if kind is None:
        raise BadInputError(
            f"{where} holds a record of an unknown type. Export the results with this version."
        )
    return _build(kind, fields, where)


def _build(kind: type, fields: dict[str, Any], where: str) -> Any:
    """A frozen record, after every field was checked against its annotation."""
    hints = typing.get_type_hints(kind)
    unknown = fields.keys() - hints.keys()
    if unknown:
        raise BadInputError(f"{where}: {kind.__name__} has no field {sorted(unknown)[0][:60]!r}.")
    for name, value in fields.items():
        if not _fits(value, hints[name]):
            raise BadInputError(
                f"{where}: {kind.__name__}.{name} is not what it must be ({hints[name]}). "
                "The file was changed or damaged."
            )
    try:
        return kind(**fields)
    except TypeError as error:
        raise BadInputError(f"{where} is incomplete: {error}.") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a decoded value is of an annotated type, element by element."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, hint)


def _load_one(name: str, members: Mapping[str, bytes]) -> Any:
    for suffix in (".json", ".npz"):
        if name + suffix not in members:
            raise BadInputError(f"The archive lists {_short(name)!r} but holds no such result.")
    kinds = {
        k: v
        for module in (results, profiler_results, kernel_results)
        for k, v in vars(module).items()
        if isinstance(v, type) and dataclasses.is_dataclass(v) and v.__module__ == module.__name__
    }
    json_name, npz_name = f"{name}.json", f"{name}.npz"
    arrays = {
        key.removesuffix(".npy"): _read_array(data, npz_name)
        for key, data in _unzip(members[npz_name], npz_name, ARRAY_MEMBER).items()
    }
    value = _decode(_parse(members[json_name], json_name), arrays, kinds, json_name, 0)
    if not dataclasses.is_dataclass(value):
        raise _damaged(json_name)
    return value


def _read_array(data: bytes, where: str) -> np.ndarray:
    """A read-only array of numbers; its header is checked first: it could ask for any memory."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype.kind not in NUMBER_KINDS or n_bytes != len(data) - file.tell():
            raise ValueError("size or type")
        array = np.frombuffer(data, dtype, offset=file.tell())
        return array.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise _damaged(where) from error


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def _parse(data: bytes, where: str) -> Any:
    if len(data) > MAX_JSON_BYTES:
        raise BadInputError(f"{where} is larger than {MAX_JSON_BYTES // 2**20} MB: not an export.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(where) from error


def _zip(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, ZIP_TIME)
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return file.getvalue()


def _unzip(data: bytes, where: str, allowed: re.Pattern[str]) -> dict[str, bytes]:
    """Members by name, after their names, number and sizes were checked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data), where, allowed)
            return {entry.filename: archive.read(entry) for entry in entries}
    except BadInputError:
        raise
    except Exception as error:  # zipfile raises nearly anything on a damaged file
        raise BadInputError(
            f"{where} is damaged or no zip file. Export the results again."
        ) from error


def _check_entries(
    entries: list[zipfile.ZipInfo], n_bytes: int, where: str, allowed: re.Pattern[str]
) -> None:
    names = [entry.filename for entry in entries]
    for name in names:
        if not allowed.fullmatch(name):
            raise BadInputError(f"{where} holds {_short(name)!r}, which no export has.")
    if len(entries) > MAX_MEMBERS or len(set(names)) < len(names):
        raise BadInputError(f"{where} holds {len(entries)} members, which no export has.")
    # Stored members cannot be larger together than the archive, unless they lie about it.
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > n_bytes:
        raise BadInputError(
            f"{where} is compressed, which no export is. Use the file as the workbench wrote it."
        )


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name == "manifest":
        raise ValueError(f"{name!r} is no name for a result: use a-z, 0-9, - and _")


def _damaged(where: str) -> BadInputError:
    return BadInputError(f"{where} is damaged. Export the results again.")


def _short(text: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean[:60]
