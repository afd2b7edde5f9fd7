"""Files that are either whole or absent: temp + fsync + rename, and checksums.

Ground floor: imports nothing of the project but `errors`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from megatron_codemix.errors import UserError

_CHUNK_BYTES = 1 << 20
_NO_SUCH_CALL = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}


def _temporary_sibling(path: Path) -> Path:
    """A name beside `path` that no reader takes for data: a leading dot and a `.tmp` suffix."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` durable, where the file system has this for folders (SMB and some of FUSE have not)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Delete a folder and all in it; none there is no error. Raises OSError when something of it stays, after the rest has gone."""
    try:
        shutil.rmtree(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` only when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block ends without an exception.

    Every file in it is fsynced first. `path` must not exist (a folder cannot be replaced atomically). What a killed process
    left of the same folder goes first; one that still writes holds a lock on its own.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # no locks here: then nobody sweeps either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            fsync_directory(Path(folder))
        os.rename(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _sweep(path: Path) -> None:
    """Delete the temporary siblings of the folder `path` that no living process writes."""
    left = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    for folder in [one for one in path.parent.iterdir() if left.fullmatch(one.name) and one.is_dir()]:
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically write `content`."""
    with atomic_file(path) as handle:
        handle.write(content)


def write_text(path: Path, content: str) -> None:
    """Atomically write `content` as UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Atomically write `value` as indented JSON with a final newline (NaN is refused)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file; `what` names it in the error ("manifest", "results").

    Raises UserError when the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: this {what} does not exist; check the path") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: this {what} cannot be read ({error}); make it anew or restore it") from None


def sha256_file(path: Path, moved: Callable[[], None] = lambda: None) -> str:
    """Hex sha256 of a file's bytes. moved: called behind each MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
            moved()
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in a canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
