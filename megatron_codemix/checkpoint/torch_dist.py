"""A Megatron-LM checkpoint in the `torch_dist` format, read by rows; nothing of it is unpickled (`inert`).

The folder of an iteration holds `metadata.json` (the format), `.metadata` (a pickle: which part of which tensor lies where),
`*.distcp` (archives of torch.save, end to end) and `common.pt` (arguments of the run, and whatever is not a tensor).
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_codemix.checkpoint.inert import Inert, StoredTensor, find_tensor, read_archive_pickle, read_pickle
from megatron_codemix.checkpoint.tensor_file import read_into
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json
from megatron_codemix.progress import progress

_LATEST = "latest_checkpointed_iteration.txt"
_MOST_ELEMENTS = 1 << 48
_MOST_PARTS = 1 << 16
"""Of a tensor; each is compared with all others."""
_RESTORE = "restore the folder's files, or use another checkpoint"


@dataclass(frozen=True)
class _Chunk:
    """A rectangle of a tensor, and where it is stored."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    start: int
    length: int


def iteration_folder(path: Path) -> Path:
    """The folder of the iteration that `path` is, or whose latest it names. Raises UserError."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a Megatron-LM checkpoint, or its iter_… folder")
    if (path / _LATEST).is_file() and not (path / ".metadata").is_file():
        with open(path / _LATEST, errors="replace") as handle:
            named = handle.read(64).strip()
        path = path / (f"iter_{int(named):07d}" if named.isascii() and named.isdigit() else "release")
        if not path.is_dir():
            raise UserError(f"{path}: is named by {_LATEST} and not there; {_RESTORE}")
    if list(path.glob("mp_rank_*")):
        raise UserError(
            f"{path}: is in Megatron-LM's old format, which is pickled, and reading that can run any code; have Megatron-LM write it anew "
            "with --ckpt-convert-format torch_dist"
        )
    if not (path / ".metadata").is_file() or not (path / "metadata.json").is_file():
        raise UserError(f"{path}: is no torch_dist checkpoint (it lacks .metadata or metadata.json); give the iter_… folder of one")
    backend = read_json(path / "metadata.json", "checkpoint's format")
    if not isinstance(backend, dict) or backend.get("sharded_backend") != "torch_dist":
        found = backend.get("sharded_backend") if isinstance(backend, dict) else None
        raise UserError(f"{path}: its format is {found!r}; have Megatron-LM write it anew with --ckpt-format torch_dist")
    return path


def read_arguments(folder: Path) -> dict[str, Any]:
    """The arguments of the run that wrote it, built-in values alone; none where it holds none. Raises UserError."""
    path = folder / "common.pt"
    if not path.is_file():
        return {}
    try:
        common = read_archive_pickle(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_RESTORE}") from None
    arguments = common.get("args") if isinstance(common, dict) else None
    state = arguments.state if isinstance(arguments, Inert) else arguments
    return {key: _plain(value) for key, value in state.items() if isinstance(key, str)} if isinstance(state, dict) else {}


def _plain(value: Any) -> Any:
    """A number, a text or a short row of such; of anything else only what it is, since a pickle may nest it without end."""
    scalar = (int, float, str, type(None))
    row = isinstance(value, (list, tuple)) and len(value) <= 16 and all(isinstance(one, scalar) for one in value)
    if row or isinstance(value, scalar):
        return value
    return f"a {type(value).__name__}"


class TorchDist:
    """The tensors of a checkpoint, by Megatron-LM's names. Opens `.metadata` alone; tensors are read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError for a folder whose description cannot be read, or that names files that are not in it."""
        self.folder = folder
        try:
            described = read_pickle((folder / ".metadata").read_bytes())
            self._chunks, wholes = _chunks(described)
        except (ValueError, OSError, AttributeError, TypeError, KeyError, IndexError) as error:
            raise UserError(f"{folder / '.metadata'}: cannot be read ({error}); {_RESTORE}") from None
        self.shapes: Mapping[str, tuple[int, ...]] = {
            key: tuple(max(chunk.offset[axis] + chunk.size[axis] for chunk in chunks) for axis in range(len(chunks[0].offset)))
            for key, chunks in self._chunks.items()
        }
        """Of each tensor."""
        for key, chunks in self._chunks.items():
            # parts that do not overlap and have its volume leave no gap
            if self.shapes[key] != wholes[key] or sum(math.prod(chunk.size) for chunk in chunks) != math.prod(wholes[key]):
                raise UserError(f"{folder}: '{key}' is not there whole; {_RESTORE}")
            if _overlap(chunks):
                raise UserError(f"{folder}: parts of '{key}' lie over each other; {_RESTORE}")
        files = {chunk.file for chunks in self._chunks.values() for chunk in chunks}
        for name in sorted(files):
            if name != os.path.basename(name) or not name.endswith(".distcp"):
                raise UserError(f"{folder / '.metadata'}: names a file outside its folder ({name!r}); do not use this checkpoint")
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: missing; {_RESTORE}")
        self._found: dict[_Chunk, StoredTensor] = {}

    def files_of(self, keys: set[str]) -> list[Path]:
        """The files in which these tensors lie."""
        return [self.folder / name for name in sorted({chunk.file for key in keys for chunk in self._chunks[key]})]

    def check(self, keys: set[str]) -> set[torch.dtype]:
        """Find every part of these tensors, and compare it with the checksum written with it; their dtypes. Raises UserError."""
        chunks = [(key, chunk) for key in sorted(keys) for chunk in self._chunks[key]]
        dtypes = set()
        with progress("checking the original", sum(chunk.length for _, chunk in chunks) / 2**20, "MiB") as bar:
            for key, chunk in chunks:
                stored = self._stored(key, chunk)
                if not stored.is_intact():
                    raise UserError(f"{stored.path}: '{key}' in it is not what was written; {_RESTORE}")
                dtypes.add(stored.dtype)
                bar.advance(chunk.length / 2**20)
        return dtypes

    def read(self, key: str, layer: int | None, start: int, stop: int) -> Tensor:
        """Rows start ≤ i < stop of a tensor, or of one layer's of a tensor that has the layers stacked; fp32."""
        first = () if layer is None else (layer,)
        shape = self.shapes[key][len(first) :]
        result = torch.full((stop - start, *shape[1:]), float("nan"))  # what no part fills agrees with nothing
        for chunk in self._chunks[key]:
            offset, size = chunk.offset[len(first) :], chunk.size[len(first) :]
            if first and not chunk.offset[0] <= first[0] < chunk.offset[0] + chunk.size[0]:
                continue
            top, bottom = max(start, offset[0]), min(stop, offset[0] + size[0])
            if top >= bottom:
                continue
            before = (first[0] - chunk.offset[0]) * math.prod(size) if first else 0
            row = math.prod(size[1:])
            values = _elements(self._stored(key, chunk), before + (top - offset[0]) * row, (bottom - top) * row)
            columns = tuple(slice(o, o + s) for o, s in zip(offset[1:], size[1:], strict=True))
            result[(slice(top - start, bottom - start), *columns)] = values.view(bottom - top, *size[1:])
        return result

    def _stored(self, key: str, chunk: _Chunk) -> StoredTensor:
        if chunk not in self._found:
            path = self.folder / chunk.file
            try:
                found = find_tensor(path, chunk.start, chunk.length)
            except (ValueError, OSError, AttributeError, TypeError, KeyError, IndexError) as error:
                raise UserError(f"{path}: '{key}' in it cannot be read ({error}); {_RESTORE}") from None
            if math.prod(found.shape) != math.prod(chunk.size):
                raise UserError(f"{path}: '{key}' in it has another shape than .metadata says; {_RESTORE}")
            self._found[chunk] = found
        return self._found[chunk]


def _overlap(chunks: list[_Chunk]) -> bool:
    """Whether two rectangles have an element in common."""
    begins, sizes = (np.array([getattr(chunk, name) for chunk in chunks], dtype=np.int64) for name in ("offset", "size"))
    ends = begins + sizes
    return any(
        bool(((begins[number + 1 :] < ends[number]) & (begins[number] < ends[number + 1 :])).all(axis=1).any())
        for number in range(len(chunks))
    )


def _chunks(described: Any) -> tuple[dict[str, list[_Chunk]], dict[str, tuple[int, ...]]]:
    """Key → its parts, and key → its shape, of every tensor that a `.metadata` describes."""
    places = {}
    for index, place in described.get("storage_data").items():
        state = place.state
        if place.get("transform_descriptors"):
            raise ValueError("its tensors are compressed")
        fqn = index.get("fqn")
        if not isinstance(fqn, str):
            raise ValueError("a tensor whose name is no text")
        places[fqn, _numbers(index.get("offset"))] = (str(state["relative_path"]), int(state["offset"]), int(state["length"]))
    found: dict[str, list[_Chunk]] = defaultdict(list)
    wholes = {}
    for key, entry in described.get("state_dict_metadata").items():
        if not entry.name.endswith(".TensorStorageMetadata"):
            continue  # an object, which stays unread
        if not isinstance(key, str):
            raise ValueError("a tensor whose name is no text")
        wholes[key] = _numbers(entry.get("size")) or ()
        for chunk in entry.get("chunks"):
            offset, size = _numbers(chunk.get("offsets")), _numbers(chunk.get("sizes"))
            if offset is None or size is None or not len(offset) == len(size) == len(wholes[key]):
                raise ValueError(f"'{key}' has a part without a place")
            if size and 0 not in size:
                found[key].append(_Chunk(offset, size, *places[key, offset]))
        if len(found.get(key, ())) > _MOST_PARTS:
            raise ValueError(f"'{key}' has more parts than any checkpoint")
    return dict(found), {key: wholes[key] for key in found}


def _numbers(size: Any) -> tuple[int, ...] | None:
    """A torch.Size."""
    if size is None:
        return None
    numbers = size.args[0] if isinstance(size, Inert) and size.args else () if isinstance(size, Inert) else size
    if not all(isinstance(number, int) and 0 <= number < _MOST_ELEMENTS for number in numbers):
        raise ValueError("a size that is none")
    return tuple(numbers)


def _elements(stored: StoredTensor, start: int, count: int) -> Tensor:
    """Some elements, row-major; fp32."""
    values = torch.empty(count, dtype=stored.dtype)
    read_into(values, stored.path, stored.offset + start * stored.dtype.itemsize, _RESTORE)
    return values.float()
