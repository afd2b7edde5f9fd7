"""Shards of a store on a disk of the node: bounded, verified, fetched once for all of its processes.

    FOLDER/shards/SHA256.tar      a whole shard, named by what it holds: it appeared by a rename after its bytes were hashed and fsynced
    FOLDER/shards/SHA256.part     one that is being fetched, already of its full size; its writer holds a lock on it
    FOLDER/splits/FINGERPRINT     sidecars of a split, end to end
    FOLDER/lock                   held for the moments in which room is made

Nothing but the files themselves says what is there, so nothing can disagree with them: a process that is killed leaves a
`.part` without a lock, which the next one that wants the shard writes anew. Who reads a shard has a shared lock on it (mapping.py),
so that it is not evicted; the kernel gives it back with the process.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_codemix.config import CacheConfig
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.files import fsync_directory, sha256_file
from megatron_codemix.progress import say
from megatron_codemix.shards.manifest import ShardEntry
from megatron_codemix.shards.mapping import ShardFile
from megatron_codemix.shards.stores import Patience, Store

_HASH_ATTEMPTS = 3
_POLL_SECONDS = 0.02
_SAY_SECONDS = 5.0
_URGENT_SECONDS = 1.0
"""For which one waits for others to let go of what they have passed, before anything that nobody reads is evicted."""


class CacheFull(Exception):
    """Everything in the cache is in use, or needed earlier than what was to be fetched."""


class ShardCache:
    """The cache of a node, as one process sees it. May be used by several threads."""

    def __init__(self, settings: CacheConfig) -> None:
        """Raises UserError where the folder cannot be used."""
        self.settings = settings
        self.patience = Patience(settings.attempts, settings.timeout_seconds)
        self._folder = settings.folder / "shards"
        self._since = time.time()
        self._verified: set[str] = set()
        self._steps: dict[str, int] = {}
        self._guard = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (settings.folder / "splits").mkdir(exist_ok=True)
            self._lock_file = os.open(settings.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"data.cache.folder: {settings.folder} cannot be used ({error.strerror}); choose a folder of a local disk"
            ) from None

    def want(self, entry: ShardEntry, step: int | None) -> None:
        """Say when a shard is needed next, which decides who makes room for whom. None: not in sight."""
        if step is None:
            self._steps.pop(entry.sha256, None)
        else:
            self._steps[entry.sha256] = step

    def take(self, entry: ShardEntry, store: Store, give_way: Callable[[], None] = lambda: None) -> ShardFile:
        """The shard's file, once it is there: fetched now, by another process of the node, or long ago.

        give_way: called where the cache is full, to let go of what the caller has mapped.
        Raises UserError or JobError where the store cannot give it, or the cache is too small for what is in use.
        """
        begun = said = time.monotonic()
        full = False
        while True:
            file = self._there(entry, store)
            if file is not None:
                return file
            try:
                self.bring(entry, store, urgent=full and time.monotonic() - begun > _URGENT_SECONDS)
            except CacheFull:
                full = True
                if time.monotonic() - begun > _URGENT_SECONDS:
                    give_way()
            now = time.monotonic()
            if full and now - begun > self.patience.timeout_seconds:
                raise JobError(
                    f"data.cache.bytes: all {self.settings.bytes:,} bytes of {self.settings.folder} are in use, and {entry.name} "
                    f"({entry.size:,}) is needed; raise it, then start the same command again"
                )
            if now - said > _SAY_SECONDS and not self._path(entry).exists():
                said = now
                say(f"waiting for {store.url / entry.name} ({now - begun:.0f} s)" + (": the cache is full" if full else ""))
            if not self._path(entry).exists():
                time.sleep(_POLL_SECONDS)

    def bring(self, entry: ShardEntry, store: Store, urgent: bool = False) -> bool:
        """Fetch a shard, unless it is there; False while another process or thread does. Raises as `take`, and CacheFull.

        urgent: it is needed at once, so whatever nobody reads at this moment may go.
        """
        if self._path(entry).exists():
            return self._there(entry, store) is not None
        part = self._begin(entry, urgent)
        if part is None:
            return False
        try:
            self._fetch(entry, store, part)
        except BaseException:
            with suppress(OSError):
                self._part(entry).unlink()  # under its lock
            raise
        finally:
            os.close(part)
        return True

    def _path(self, entry: ShardEntry) -> Path:
        return self._folder / f"{entry.sha256}.tar"

    def _part(self, entry: ShardEntry) -> Path:
        return self._folder / f"{entry.sha256}.part"

    def _there(self, entry: ShardEntry, store: Store) -> ShardFile | None:
        """The shard's file, if it is there and whole. One from before this process began is hashed, once."""
        path = self._path(entry)
        try:
            file = ShardFile.of(path)
        except OSError:
            return None
        whole = file.size == entry.size
        if whole and entry.sha256 not in self._verified and file.changed / 1e9 < self._since:
            try:
                whole = sha256_file(path) == entry.sha256
            except OSError:
                return None
        if not whole:
            say(f"{path}: damaged in the cache; {store.url / entry.name} is fetched anew")
            path.unlink(missing_ok=True)
            return None
        self._verified.add(entry.sha256)
        return file

    def _begin(self, entry: ShardEntry, urgent: bool) -> int | None:
        """A locked file of the shard's size to write to; None: another one has it. Raises CacheFull."""
        with self._exclusive():
            part = os.open(self._part(entry), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _locked(part) or not _is_named(part, self._part(entry)):  # its writer may have given it up meanwhile
                    os.close(part)
                    return None
                if self._path(entry).exists():  # published in between
                    with suppress(OSError):
                        self._part(entry).unlink()
                    os.close(part)
                    return None
                os.ftruncate(part, 0)
                self._make_room(entry, urgent)
                os.ftruncate(part, entry.size)  # from now on others count it
                return part
            except BaseException:
                with suppress(OSError):
                    self._part(entry).unlink()
                os.close(part)
                raise

    def _make_room(self, entry: ShardEntry, urgent: bool) -> None:
        """Evict until the shard fits: first what is not in sight, the oldest first, then what is needed last and later than this."""
        rows = []
        for one in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                status = one.stat()
                rows.append((one.path, status.st_size, status.st_mtime_ns))
        lack = sum(size for _, size, _ in rows) + entry.size - self.settings.bytes
        mine = self._steps.get(entry.sha256, 0)
        out_of_sight, later = [], []
        for path, size, changed in rows:
            step = self._steps.get(Path(path).stem)
            if step is None or path.endswith(".part"):
                out_of_sight.append((changed, path, size))
            elif step > mine or urgent:
                later.append((-step, path, size))
        victims = [*sorted(out_of_sight), *sorted(later)]
        if lack > sum(size for _, _, size in victims):
            raise CacheFull
        for _, path, size in victims:
            if lack <= 0:
                return
            lack -= size if path != str(self._part(entry)) and _evicted(path) else 0
        if lack > 0:
            raise CacheFull

    def _fetch(self, entry: ShardEntry, store: Store, part: int) -> None:
        """Write the shard into its locked file, and publish it once its sha256 is the manifest's."""
        for _ in range(_HASH_ATTEMPTS):
            digest, place = hashlib.sha256(), 0
            for chunk in store.chunks(entry.name, entry.size):
                digest.update(chunk)
                self._write(part, chunk, place)
                place += len(chunk)
            if digest.hexdigest() == entry.sha256:
                os.fsync(part)
                self._verified.add(entry.sha256)
                os.rename(self._part(entry), self._path(entry))
                fsync_directory(self._folder)
                return
        raise JobError(
            f"{store.url / entry.name}: damaged (its sha256 is not the manifest's, {_HASH_ATTEMPTS} times); put the right shard there, "
            "then start the same command again"
        )

    def _write(self, part: int, chunk: bytes, place: int) -> None:
        view = memoryview(chunk)
        try:
            while view:
                written = os.pwrite(part, view, place)
                view, place = view[written:], place + written
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise
            where = f"data.cache.folder: {self.settings.folder} cannot be written to ({error.strerror})"
            raise JobError(f"{where}; make room or lower data.cache.bytes, then start the same command again") from None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process and thread of the node at a time."""
        with self._guard:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether this is the name of the open file, and not of another one, or none."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _evicted(path: str) -> bool:
    """Delete a file unless somebody reads or writes it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _locked(descriptor):
            return False
        os.unlink(path)
        return True
    finally:
        os.close(descriptor)
