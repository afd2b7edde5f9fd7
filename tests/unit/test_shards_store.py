"""Shards of a store: a real S3 API on loopback (moto's server) behind a proxy that fails in the ways stores do."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from megatron_codemix.batches import Loader
from megatron_codemix.config import CacheConfig, RunConfig, Url, parse_config
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.mixture import compile_plan
from megatron_codemix.shards import ShardCache, SplitReader, SplitWriter, files_of, load_manifest, open_split, stores

moto = pytest.importorskip("moto.server", reason="moto is not installed (requirements-dev.txt)")
pytest.importorskip("s3fs", reason="s3fs is not installed (requirements-stores.txt)")

VOCABULARY, END, LENGTH = 200, 3, 16
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to the S3 server; `faults[key]` are used up one by one by GETs (or HEADs) of that object."""

    upstream: tuple[str, int]
    faults: dict[str, list[str]] = defaultdict(list)
    log: list[tuple[str, str]] = []
    go_on = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        key = self.path.split("?")[0].removeprefix("/bucket/")
        faults = self.faults[f"{self.command} {key}"]
        fault = faults[0] if faults and faults[0].startswith("always ") else faults.pop(0) if faults else ""
        fault = fault.removeprefix("always ")
        self.log.append((self.command, key))
        if fault == "stall":
            self.go_on.wait(20)
        server = http.client.HTTPConnection(*self.upstream)
        server.request(self.command, self.path, headers=dict(self.headers))
        answer = server.getresponse()
        body = answer.read()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding")}
        status = 500 if fault == "500" else answer.status
        if fault == "size":
            headers["Content-Length"] = str(int(headers["Content-Length"]) + 512)
        if fault == "short":
            body = body[:-7]
            headers["Content-Length"] = str(len(body))
        if fault == "corrupt":
            body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if fault in ("break off", "hang") else body)
                if fault == "hang":
                    self.wfile.flush()
                    self.go_on.wait(20)
            if fault == "break off":
                self.close_connection = True
        except OSError:
            pass  # the client has given up

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A split of some ten shards."""
    folder = tmp_path_factory.mktemp("corpus") / "code" / "train"
    rng = np.random.default_rng(0)
    settings = {"source": "code", "split": "train", "modality": "code", "token_dtype": "uint16", "tokenizer_fingerprint": "0" * 64}
    sizes = {"vocab_size": VOCABULARY, "end_of_text_id": END, "pack_tokens": 1000, "shard_tokens": 2000, "prep": {}}
    with SplitWriter(folder, **settings, **sizes) as writer:
        for number in range(1000):
            ids = rng.integers(5, VOCABULARY, rng.integers(2, 40)).astype(np.uint16)
            ids[-1] = END
            writer.add(ids, num_bytes=len(ids), document_id=number)
    return folder


@pytest.fixture(scope="module")
def server(folder) -> Iterator[str]:
    """The address of the proxy before an S3 server that holds the split at s3://bucket/code/train."""
    backend = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    backend.start()
    host, port = backend.get_host_and_port()
    server = http.client.HTTPConnection(host, port)

    def put(path: str, content: bytes = b"") -> None:
        server.request("PUT", path, content)
        answer = server.getresponse()
        answer.read()
        assert answer.status == 200, f"{path}: {answer.status}"

    put("/bucket")
    for path in sorted(folder.iterdir()):
        put(f"/bucket/code/train/{path.name}", path.read_bytes())
    Proxy.upstream = (host, port)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}"
    Proxy.go_on.set()
    proxy.shutdown()
    backend.stop()


@pytest.fixture
def s3(server, monkeypatch) -> Iterator[Url]:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    Proxy.faults.clear()
    Proxy.log.clear()
    Proxy.go_on.clear()
    yield Url("s3://bucket/code/train")
    Proxy.go_on.set()


def cache(tmp_path: Path, **fields: object) -> ShardCache:
    defaults = {"folder": tmp_path / "cache", "bytes": 10_000_000, "attempts": 3, "timeout_seconds": 60.0}
    return ShardCache(CacheConfig.model_validate(defaults | fields))


def windows(reader: SplitReader, ids: np.ndarray | None = None) -> np.ndarray:
    return reader.read_windows(np.arange(reader.num_windows(LENGTH)) if ids is None else ids, LENGTH)


def of_shard(reader: SplitReader, shard: int) -> np.ndarray:
    """The first two windows of a shard."""
    return np.cumsum(reader.shard_windows(LENGTH))[shard] - reader.shard_windows(LENGTH)[shard] + np.arange(2)


def fetched() -> list[str]:
    """Shards that were asked for, by name."""
    return [key.rpartition("/")[2] for command, key in Proxy.log if command == "GET" and key.endswith(".tar")]


def test_a_cold_start_and_a_resume(s3, folder, tmp_path) -> None:
    plain = SplitReader(folder)
    reader = open_split(s3, cache(tmp_path))
    assert fetched() == [], "opening a split costs its small files alone"
    assert reader.manifest.fingerprint == plain.manifest.fingerprint == load_manifest(s3).fingerprint
    assert np.array_equal(windows(reader), windows(plain))
    names = [entry.name for entry in plain.manifest.shards]
    assert sorted(fetched()) == names
    Proxy.log.clear()
    again = open_split(s3, cache(tmp_path))
    assert np.array_equal(windows(again), windows(plain))
    assert [key for _, key in Proxy.log if not key.endswith("manifest.json")] == [], "what is in the cache is not fetched again"


def test_one_process_reads_the_small_files_for_others(s3, folder, tmp_path) -> None:
    files = files_of(open_split(s3, cache(tmp_path)))
    Proxy.log.clear()
    reader = open_split(s3, cache(tmp_path / "other node"), files)
    reader.read_all_sidecars()
    assert Proxy.log == []
    assert np.array_equal(windows(reader, of_shard(reader, 3)), windows(SplitReader(folder), of_shard(reader, 3)))
    plain = open_split(folder, None, files_of(SplitReader(folder)))
    assert np.array_equal(windows(plain), windows(SplitReader(folder)))


@pytest.mark.parametrize("fault", ["500", "short", "break off", "corrupt"])
def test_failed_downloads_are_made_again(s3, folder, tmp_path, fault) -> None:
    reader = open_split(s3, cache(tmp_path))
    Proxy.faults[f"GET code/train/{reader.manifest.shards[2].name}"] = [fault]
    assert np.array_equal(windows(reader, of_shard(reader, 2)), windows(SplitReader(folder), of_shard(reader, 2)))
    assert fetched().count(reader.manifest.shards[2].name) == 2


def test_a_store_that_stalls_is_asked_again_over_a_new_connection(s3, folder, tmp_path) -> None:
    reader = open_split(s3, cache(tmp_path))
    reader.place._cache.patience = stores.Patience(3, 3.0)
    reader.place._store.patience = reader.place._cache.patience
    Proxy.faults[f"GET code/train/{reader.manifest.shards[0].name}"] = ["stall", "hang"]
    assert np.array_equal(windows(reader, of_shard(reader, 0)), windows(SplitReader(folder), of_shard(reader, 0)))
    assert len(fetched()) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [("GET 500", "cannot be read"), ("GET corrupt", "damaged (its sha256"), ("GET stall", "nothing has come"), ("HEAD size", "has")],
)
def test_what_does_not_pass_ends_in_one_line_and_nothing_is_kept(s3, tmp_path, fault, words) -> None:
    command, kind = fault.split()
    reader = open_split(s3, cache(tmp_path, attempts=2))
    if kind == "stall":
        reader.place._store.patience = stores.Patience(2, 0.5)
    Proxy.faults[f"{command} code/train/{reader.manifest.shards[1].name}"] = [f"always {kind}"]
    with pytest.raises(JobError) as caught:
        windows(reader, of_shard(reader, 1))
    text = str(caught.value)
    assert text.startswith(f"s3://bucket/code/train/{reader.manifest.shards[1].name}: ")
    assert words in text
    assert "\n" not in text
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_what_is_not_there_or_not_allowed_is_said_at_once(s3, tmp_path, monkeypatch) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"s3://bucket/code/test/manifest.json: there is no such object"):
        open_split(Url("s3://bucket/code/test"), cache(tmp_path, attempts=9))
    with pytest.raises(UserError, match="there is no such object"):
        load_manifest(Url("s3://elsewhere/code/test"))
    assert time.monotonic() - begun < 60, "no time is spent on trying again"

    def without(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(stores.fsspec, "filesystem", without)
    with pytest.raises(UserError, match="needs the package s3fs"):
        load_manifest(s3)


def test_a_shard_that_was_altered_in_the_cache_is_fetched_anew(s3, folder, tmp_path) -> None:
    reader = open_split(s3, cache(tmp_path))
    windows(reader, of_shard(reader, 4))
    (kept,) = (tmp_path / "cache" / "shards").iterdir()
    content = bytearray(kept.read_bytes())
    content[2000] ^= 1
    kept.unlink()
    kept.write_bytes(content)
    os.utime(kept, (1, 1))
    again = open_split(s3, cache(tmp_path))
    assert np.array_equal(windows(again, of_shard(again, 4)), windows(SplitReader(folder), of_shard(again, 4)))
    assert fetched() == [reader.manifest.shards[4].name] * 2


def test_a_full_cache_is_said(s3, tmp_path) -> None:
    largest = max(entry.size for entry in load_manifest(s3).shards)
    reader = open_split(s3, cache(tmp_path, bytes=largest))
    reader.place._cache.patience = stores.Patience(3, 2.0)
    held = reader.place.map(0)
    with pytest.raises(JobError, match=r"data.cache.bytes: all .* are in use"):
        windows(reader, of_shard(reader, 1))
    held.close()
    assert windows(reader, of_shard(reader, 1)).shape == (2, LENGTH + 1)


def test_a_full_disk_is_said(s3, tmp_path, monkeypatch) -> None:
    reader = open_split(s3, cache(tmp_path))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(JobError, match=r"data.cache.folder: .* cannot be written to \(No space left on device\)"):
        windows(reader, of_shard(reader, 0))
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def run(sources: dict[str, str], **data: object) -> RunConfig:
    stage = {"name": "a", "tokens": 150 * 8 * LENGTH, "mixture": {"code": 1}, "batch_size": 8, "sequence_length": LENGTH}
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    raw = {"name": "r", "output": "o", "tokenizer": "t", "model": shape, "data": data}
    raw["sources"] = {name: {"path": path} for name, path in sources.items()}
    raw["stages"] = [{**stage, "learning_rate": {"shape": "constant", "peak": 0.001}}]
    return parse_config(raw, RunConfig, "test")


def loader(config: RunConfig, reader: SplitReader, **layout: int) -> Loader:
    fingerprint = {"code": reader.manifest.fingerprint}
    plan = compile_plan(config, {"code": reader.num_windows}, fingerprint, {"code": reader.shard_windows})
    options = {"micro_batch_size": 2, **layout}
    return Loader(plan, {"code": reader}, token_num_bytes=np.ones(VOCABULARY, int), data=config.data, **options)


def test_training_reads_through_a_cache_of_a_part_of_the_data(s3, folder, tmp_path) -> None:
    manifest = load_manifest(s3)
    size = max(entry.size for entry in manifest.shards)
    settings = {"folder": str(tmp_path / "cache"), "bytes": 4 * size, "fetches": 2}
    config = run({"code": "s3://bucket/code"}, order="blocks", block_shards=2, cache=settings)
    assert settings["bytes"] < 0.5 * sum(entry.size for entry in manifest.shards)
    near = loader(config, open_split(s3, ShardCache(config.data.cache)))
    plain = loader(config, SplitReader(folder))
    most = 0
    for step in range(near.plan.num_steps):
        for mine, expected in zip(near.batches(step), plain.batches(step), strict=True):
            assert np.array_equal(mine.tokens, expected.tokens)
            assert np.array_equal(mine.window_ids, expected.window_ids)
        most = max(most, sum(path.stat().st_size for path in (tmp_path / "cache" / "shards").iterdir() if path.exists()))
    near.close()
    plain.close()
    assert most <= settings["bytes"]
    read = set(fetched())
    assert len(read) >= 8
    assert len(fetched()) == len(read), "in one epoch no shard is fetched twice"


PROCESS = """
import json, sys, time
import numpy as np
from pathlib import Path
from megatron_codemix.config import CacheConfig, Url
from megatron_codemix.shards import ShardCache, open_split

folder, ready = sys.argv[1:]
reader = open_split(Url("s3://bucket/code/train"), ShardCache(CacheConfig(folder=Path(folder), bytes=10_000_000, timeout_seconds=30.0)))
Path(ready).touch()
while not Path(folder, "go").exists():
    time.sleep(0.01)
read = reader.read_windows(np.arange(reader.num_windows(16)), 16)
print(json.dumps([len(read), int(read.astype(np.int64).sum())]))
"""


def start(tmp_path: Path, name: str, server: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), str(tmp_path / name)]
    return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, "AWS_ENDPOINT_URL": server}, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_two_processes_fetch_a_shard_once(s3, server, folder, tmp_path) -> None:
    processes = [start(tmp_path, name, server) for name in ("a", "b")]
    wait_for(lambda: all((tmp_path / name).exists() for name in ("a", "b")))
    (tmp_path / "cache" / "go").touch()
    expected = windows(SplitReader(folder))
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert json.loads(out) == [len(expected), int(expected.astype(np.int64).sum())]
    assert sorted(fetched()) == [entry.name for entry in SplitReader(folder).manifest.shards]


def test_a_process_killed_while_it_fetches_leaves_nothing_that_is_taken_for_whole(s3, server, folder, tmp_path) -> None:
    first = SplitReader(folder).manifest.shards[0]
    Proxy.faults[f"GET code/train/{first.name}"] = ["hang"]
    process = start(tmp_path, "a", server)
    wait_for(lambda: (tmp_path / "a").exists())
    (tmp_path / "cache" / "go").touch()
    wait_for(lambda: first.name in fetched() and list((tmp_path / "cache" / "shards").glob("*.part")))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert [path.suffix for path in (tmp_path / "cache" / "shards").iterdir()] == [".part"]
    reader = open_split(s3, cache(tmp_path))
    assert np.array_equal(windows(reader), windows(SplitReader(folder)))
    assert not list((tmp_path / "cache" / "shards").glob("*.part"))
