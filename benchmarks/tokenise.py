"""CPU efficiency of JSON lines → shards against plain SentencePiece with webdataset.TarWriter, and against datatrove.

    python benchmarks/tokenise.py --data code.jsonl more.jsonl
    python benchmarks/tokenise.py --data code.jsonl --datatrove-python /venvs/datatrove/bin/python
    python benchmarks/tokenise.py                 # on the running Python's standard library

Ours is the whole command, `codemix prep shards`: reading, dividing, tokenising, comparing engines, leakage check, tar files,
checksums. The peers read the same files, tokenise with the same vocabulary (datatrove: its export for Hugging Face) and write
ids; they do nothing else. All run as processes of their own; CPU time is user + system with all children, start-up included.
Runs alternate, the result is the median of the ratios. At the end every document's ids are compared with SentencePiece's,
and the shards' overhead over their raw tokens, the peak memory of a process and the gain by a second worker are printed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import yaml

from data_prep.documents import Tally
from data_prep.sources import open_source
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import Manifest, SplitReader

_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_HERE = Path(__file__).parent
_SOURCE = "corpus"
DOCUMENT_BYTES = 24
"""A row of documents.npy."""


def _run(command: list[str]) -> tuple[float, float, int]:
    """(CPU-seconds with all children, wall seconds, peak resident bytes of one process)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_ENVIRONMENT)
    peak: list[int] = [0]
    watch = threading.Thread(target=_watch, args=(process.pid, peak))
    watch.start()
    _, errors = process.communicate()
    wall = time.monotonic() - started
    watch.join()
    if process.returncode:
        raise RuntimeError(f"{command[:4]} failed:\n{errors.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall, peak[0]


def _watch(pid: int, peak: list[int]) -> None:
    """Peak resident bytes of a process and of each of its children, as the kernel keeps them, looked at ten times a second."""
    while Path(f"/proc/{pid}").exists():
        for one in [pid, *_children(pid)]:
            try:
                lines = Path(f"/proc/{one}/status").read_text()
                peak[0] = max(peak[0], 1024 * int(lines.split("VmHWM:")[1].split()[0]))
            except (OSError, IndexError):
                pass
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(child) for child in file.read_text().split()]
        except OSError:
            continue
        found += [one for child in direct for one in (child, *_children(child))]
    return found


def _stdlib_corpus(folder: Path) -> list[Path]:
    files = []
    for part in ("code", "text"):
        file = folder / f"{part}.jsonl"
        source = open_source(part, SourceSpec(kind="stdlib", part=part, modality=part))
        with open(file, "wb") as out:
            for chunk in source.chunks():
                for document in chunk.documents(Tally(), lambda num_bytes: None):
                    out.write(orjson.dumps({"text": document.text}) + b"\n")
        files.append(file)
    return files


def _texts(files: list[Path]) -> list[str]:
    texts = []
    for file in files:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
            texts += [orjson.loads(line)["text"] for line in lines if line.strip()]
    return texts


def _compare(output: Path, peer: Path, num_documents: int) -> str:
    """Assert that every document of the shards has SentencePiece's ids; the ids decide which document it is."""
    expected: dict[bytes, int] = {}
    with tarfile.open(peer) as shard:
        for member in shard:
            content = shard.extractfile(member)
            assert content is not None
            ids = np.load(io.BytesIO(content.read()), allow_pickle=False).tobytes()
            expected[ids] = expected.get(ids, 0) + 1
    compared = 0
    for split in ("train", "valid"):
        for document in SplitReader(output / _SOURCE / split).documents():
            ids = document.tokens[:-1].tobytes()
            if not expected.get(ids):
                raise AssertionError(f"{split}: document {int(document.row['document_id']):016x} has other ids")
            expected[ids] -= 1
            compared += 1
    left_out = "the others were left out: empty, or held out and repeated in training"
    return f"identical ids in {compared:,} of {num_documents:,} documents ({left_out})"


def _overhead(output: Path) -> str:
    folder = output / _SOURCE / "train"
    manifest = Manifest.load(folder)
    raw = manifest.num_tokens * manifest.dtype.itemsize
    on_disk = sum(file.stat().st_size for file in folder.iterdir())
    tables = DOCUMENT_BYTES * manifest.num_documents
    return (
        f"training shards: {(on_disk - tables) / raw - 1:+.3%} over their {raw / 1e6:,.1f} MB of tokens for the container, "
        f"{tables / raw:+.3%} for {DOCUMENT_BYTES} bytes about each document ({manifest.num_tokens / manifest.num_documents:,.0f} tokens)"
    )


def _prep_file(folder: Path, files: list[Path], arguments: argparse.Namespace) -> Path:
    config = {
        "output": str(folder / "prepared"),
        "sources": {_SOURCE: {"kind": "jsonl", "modality": "code", "paths": list(map(str, files))}},
        "split": {"validation": arguments.validation},
        "tokenizer": {"vocab_size": arguments.vocab_size, "sample_bytes": arguments.sample_bytes},
    }
    path = folder / "prep.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", type=Path, default=[], metavar="FILE", help=".jsonl or .jsonl.gz files with a 'text' field")
    parser.add_argument("--pairs", type=int, default=3, help="alternating runs")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="pieces; lowered by hand where the corpus is small")
    parser.add_argument("--sample-bytes", type=int, default=40_000_000, help="text the tokenizer learns from")
    parser.add_argument("--validation", type=float, default=0.01, help="share of documents held out")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of codemix prep shards, one after the other")
    parser.add_argument("--datatrove-python", type=Path, help="Python of an environment with datatrove, to compare with it too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [path.resolve() for path in arguments.data] or _stdlib_corpus(folder)
        prep = _prep_file(folder, files, arguments)
        codemix = [sys.executable, "-m", "megatron_codemix.cli", "prep"]
        subprocess.run([*codemix, "tokenizer", str(prep)], check=True, env=_ENVIRONMENT)
        _measure(folder, files, [*codemix, "shards", str(prep)], arguments)


def _measure(folder: Path, files: list[Path], codemix: list[str], arguments: argparse.Namespace) -> None:
    output, peer = folder / "prepared", folder / "peer.tar"
    texts = _texts(files)
    num_documents, num_bytes = len(texts), sum(len(text.encode("utf-8")) for text in texts)
    del texts
    print(f"{num_bytes / 1e6:.1f} MB of text, {num_documents:,} documents; MB of text per CPU-second, start-up included", flush=True)
    model = output / "tokenizer" / "tokenizer.model"
    peers: dict[str, Callable[[], list[str]]] = {
        "SentencePiece + TarWriter": lambda: [
            sys.executable, str(_HERE / "tokenise_peer_sentencepiece.py"), str(model), str(peer), *map(str, files)
        ]
    }  # fmt: skip
    if arguments.datatrove_python:
        links = folder / "links"
        links.mkdir()
        for number, file in enumerate(files):
            (links / f"{number:02d}-{file.name}").symlink_to(file)
        script, export = str(_HERE / "tokenise_peer_datatrove.py"), str(output / "tokenizer" / "tokenizer.json")
        peers["datatrove"] = lambda: [str(arguments.datatrove_python), script, export, str(folder / "datatrove"), "1", str(links)]
    ours = {f"codemix, {workers} workers": workers for workers in arguments.workers}
    ratios: dict[tuple[str, str], list[float]] = {}
    walls: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for pair in range(1, arguments.pairs + 1):
        speeds: dict[str, float] = {}
        for name in [*peers, *ours]:
            for leftover in (output / _SOURCE, output / ".work", folder / "datatrove"):
                shutil.rmtree(leftover, ignore_errors=True)
            seconds, wall, peak = _run(peers[name]() if name in peers else [*codemix, f"workers={ours[name]}"])
            speeds[name] = num_bytes / 1e6 / seconds
            walls.setdefault(name, []).append(wall)
            peaks[name] = max(peaks.get(name, 0), peak)
        for mine in ours:
            for other in peers:
                ratios.setdefault((mine, other), []).append(speeds[mine] / speeds[other])
        print(f"run {pair}: " + ", ".join(f"{name} {speed:.2f}" for name, speed in speeds.items()), flush=True)
    for (mine, other), found in ratios.items():
        print(f"{mine}: median ratio to {other} {statistics.median(found):.2f} ({min(found):.2f} … {max(found):.2f})")
    for name, found in walls.items():
        wall = statistics.median(found)
        print(f"{name}: median wall {wall:.2f} s, {num_bytes / 1e6 / wall:.1f} MB/s; peak memory {peaks[name] / 1e6:.0f} MB a process")
    print(_overhead(output))
    print(_compare(output, peer, num_documents))


if __name__ == "__main__":
    main()
