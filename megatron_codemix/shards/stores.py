"""Objects of a store, through fsspec: every call ends, with what was asked for or with one line that says why not.

A store may be slow, stall, break off, or give other bytes than it was asked for. What may pass is tried again after 1, 2, 4 …
seconds, over new connections; what comes is checked by whoever knows what it should be.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import fsspec

from megatron_codemix.config import Url
from megatron_codemix.errors import JobError, UserError, printable

_T = TypeVar("_T")
_CHUNK_BYTES = 8 << 20
"""Asked for at a time: large enough for a store's rate, little to lose when it breaks off."""
_MOST_SECONDS_BETWEEN = 30.0
_DENIED = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "RefreshError", "DefaultCredentialsError"}
_NEEDED = {"s3": "s3fs", "gs": "gcsfs"}


class Patience(NamedTuple):
    """How long a store is waited for, and how often it is asked."""

    attempts: int = 5
    timeout_seconds: float = 60.0


class Store:
    """A folder of a store. May be used by several threads."""

    def __init__(self, url: Url, patience: Patience = Patience()) -> None:  # noqa: B008 - a tuple
        self.url, self.patience = url, patience
        self._filesystem: Any = None
        self._lock = threading.Lock()

    def size(self, name: str) -> int:
        """Bytes of an object, as the store says. Raises UserError and JobError as `read` does."""
        return int(self._tried(name, lambda files, path: files.info(path)["size"]))

    def read(self, name: str) -> bytes:
        """A small object. Raises UserError where there is none or no access, JobError where the store cannot be read from."""
        return self._tried(name, lambda files, path: files.cat_file(path))

    def read_all(self, names: Sequence[str], done: Callable[[int], None] = lambda number: None) -> list[bytes]:
        """Small objects, several at a time, in order. done: told how many have come since the last call."""
        found: list[bytes] = []
        for first in range(0, len(names), 16):
            some = names[first : first + 16]
            found += [part.wait() for part in [_InThread(lambda name=name: self.read(name)) for name in some]]
            done(len(some))
        return found

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of an object of `size` bytes, in order. Raises as `read` does, JobError too when the object has another size."""
        found = self.size(name)
        if found != size:
            raise JobError(self._about(name, f"has {found:,} bytes where the manifest says {size:,}; put the right shard there"))
        for start in range(0, size, _CHUNK_BYTES):
            yield self._chunk(name, start, min(size, start + _CHUNK_BYTES))

    def _chunk(self, name: str, start: int, end: int) -> bytes:
        def read(files: Any, path: str) -> bytes:
            chunk = files.cat_file(path, start=start, end=end)
            if len(chunk) != end - start:
                raise OSError(f"gave {len(chunk):,} bytes where {end - start:,} were asked for")
            return chunk

        return self._tried(name, read)

    def _tried(self, name: str, call: Callable[[Any, str], _T]) -> _T:
        """What the call gives, after as many attempts as it takes."""
        error: BaseException | None = None
        for attempt in range(self.patience.attempts):
            if attempt:
                time.sleep(min(2.0 ** (attempt - 1), _MOST_SECONDS_BETWEEN))
            files, path = self._files(), f"{self.url.text.partition('://')[2]}/{name}"
            try:
                return _InThread(lambda files=files, path=path: call(files, path)).wait(self.patience.timeout_seconds)
            except FileNotFoundError:
                raise UserError(self._about(name, "there is no such object; check the address, or put the shards there")) from None
            except PermissionError as denied:
                raise UserError(self._about(name, f"no access ({denied}); check the credentials")) from None
            except Exception as failure:
                if type(failure).__name__ in _DENIED:
                    raise UserError(self._about(name, f"no access ({failure}); check the credentials")) from None
                error = failure
                self._forget(files)
        what = printable(str(error)) or type(error).__name__
        times = f"{self.patience.attempts} attempts" if self.patience.attempts > 1 else "one attempt"
        raise JobError(self._about(name, f"cannot be read ({what}; {times}); see to the store, then start the same command again"))

    def _about(self, name: str, what: str) -> str:
        return f"{self.url / name}: {what}"

    def _files(self) -> Any:
        with self._lock:
            if self._filesystem is None:
                self._filesystem = _open(self.url, self.patience)
            return self._filesystem

    def _forget(self, files: Any) -> None:
        """The next attempt connects anew."""
        with self._lock:
            if self._filesystem is files:
                self._filesystem = None


def _open(url: Url, patience: Patience) -> Any:
    options: dict[str, Any] = {}
    if url.scheme == "s3":
        waits = {"connect_timeout": min(10.0, patience.timeout_seconds), "read_timeout": patience.timeout_seconds}
        options = {"config_kwargs": {**waits, "retries": {"max_attempts": 1}}, "use_listings_cache": False}
    try:
        files = fsspec.filesystem(url.scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        package = _NEEDED.get(url.scheme, url.scheme)
        remedy = f"pip install -c constraints.txt {package} (requirements-stores.txt)"
        raise UserError(f"{url}: {url.scheme}:// needs the package {package}, which cannot be imported ({error}); {remedy}") from None
    if url.scheme == "s3":
        files.retries = 1  # ours are counted, and have a bound in time
    return files


class _InThread:
    """A call in a thread of its own, so that one that never ends can be left behind."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(call,), daemon=True, name="store").start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._box.put((call(), None))
        except BaseException as error:
            self._box.put((None, error))

    def wait(self, seconds: float | None = None) -> Any:
        """Its value, or its exception; TimeoutError when it has not ended in time."""
        try:
            value, error = self._box.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"nothing has come for {seconds:g} seconds") from None
        if error is not None:
            raise error
        return value
