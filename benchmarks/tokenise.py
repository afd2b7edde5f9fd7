"""CPU efficiency of tokenise-to-shards against plain SentencePiece on the same model and files.

    python benchmarks/tokenise.py --data corpus/code.jsonl.gz corpus/books.jsonl.gz
    python benchmarks/tokenise.py                 # on the running Python's standard library

Ours is the whole command, `codemix prep shards`: reading, dividing, tokenising, comparing engines, leakage check, tar files,
checksums. The peer only reads the same files (gzip, orjson), encodes each document with SentencePiece and writes the raw
ids. Both run as processes of their own; CPU time is user + system with all children, start-up included. Runs alternate, the
result is the median of the ratios. After the last pair every document's ids are compared.
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import orjson
import yaml

from data_prep.documents import Tally
from data_prep.sources import open_source
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import SplitReader, document_id
from megatron_codemix.tokenizer import Tokenizer

_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_ENVIRONMENT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def plain_sentencepiece(model: Path, output: Path, files: list[Path]) -> None:
    """The peer: ids of every document end to end (uint16 or uint32), and where each ends."""
    tokenizer = Tokenizer.load(model)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    ends: list[tuple[int, int]] = []
    total = 0
    with open(output, "wb") as ids:
        for file in files:
            with gzip.open(file, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    tokens = tokenizer.encode(orjson.loads(line)["text"])
                    ids.write(tokens.astype(dtype).tobytes())
                    total += tokens.size
                    ends.append((document_id(f"{file.name}:{number}"), total))
    np.save(output.with_suffix(".ends.npy"), np.array(ends, np.uint64))


def _stdlib_corpus(folder: Path) -> list[Path]:
    files = []
    for part in ("code", "text"):
        file = folder / f"{part}.jsonl.gz"
        source = open_source(part, SourceSpec(kind="stdlib", part=part, modality=part))
        with gzip.open(file, "wb", compresslevel=6) as out:
            for unit in source.units():
                for document in unit.documents(Tally()):
                    out.write(orjson.dumps({"text": document.text}) + b"\n")
        files.append(file)
    return files


def _compare(output: Path, peer: Path, files: list[Path], dtype: type) -> tuple[int, int]:
    """Assert equal ids for every document; returns (documents compared, documents that shards left out)."""
    ids = np.memmap(peer, dtype, mode="r")
    ends = np.load(peer.with_suffix(".ends.npy"), allow_pickle=False)
    starts = np.concatenate([[0], ends[:-1, 1]]).astype(np.int64)
    expected = {int(row[0]): ids[start : int(row[1])] for row, start in zip(ends, starts, strict=True)}
    compared = 0
    for name in _source_names(files):
        for split in ("train", "valid"):
            for document in SplitReader(output / name / split).documents():
                if not np.array_equal(document.tokens[:-1], expected[int(document.row["document_id"])]):
                    raise AssertionError(f"{name}/{split}: document {int(document.row['document_id']):016x} has other ids")
                compared += 1
    return compared, len(expected) - compared


def _source_names(files: list[Path]) -> dict[str, Path]:
    return {file.name.split(".")[0]: file for file in files}


def _prep_file(folder: Path, files: list[Path], arguments: argparse.Namespace) -> Path:
    config = {
        "output": str(folder / "prepared"),
        "sources": {name: {"kind": "jsonl", "modality": "text", "paths": [str(path)]} for name, path in _source_names(files).items()},
        "split": {"validation": 0.03},
        "tokenizer": {"vocab_size": arguments.vocab_size, "sample_bytes": arguments.sample_bytes},
        "workers": arguments.workers,
    }
    path = folder / "prep.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", type=Path, default=[], metavar="FILE", help=".jsonl.gz files with a 'text' field")
    parser.add_argument("--pairs", type=int, default=3, help="alternating pairs of runs")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="pieces; lowered by hand where the corpus is small")
    parser.add_argument("--sample-bytes", type=int, default=40_000_000, help="text the tokenizer learns from")
    parser.add_argument("--workers", type=int, default=2, help="processes of codemix prep shards")
    parser.add_argument("--peer", nargs="+", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        plain_sentencepiece(arguments.peer[0], arguments.peer[1], arguments.peer[2:])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [path.resolve() for path in arguments.data] or _stdlib_corpus(folder)
        prep = _prep_file(folder, files, arguments)
        codemix = [sys.executable, "-m", "megatron_codemix.cli", "prep"]
        subprocess.run([*codemix, "tokenizer", str(prep)], check=True, env=_ENVIRONMENT)
        _measure(folder, files, prep, codemix, arguments.pairs)


def _measure(folder: Path, files: list[Path], prep: Path, codemix: list[str], pairs: int) -> None:
    output, peer = folder / "prepared", folder / "ids.bin"
    model = output / "tokenizer" / "tokenizer.model"
    dtype = np.uint16 if Tokenizer.load(model).vocab_size <= 1 << 16 else np.uint32
    num_bytes = 0
    for file in files:
        with gzip.open(file, "rb") as lines:
            num_bytes += sum(len(orjson.loads(line)["text"].encode("utf-8")) for line in lines)
    print(f"{num_bytes / 1e6:.1f} MB of text in {len(files)} files; MB per CPU-second, children and start-up included")
    ratios = []
    for pair in range(1, pairs + 1):
        for source in _source_names(files):
            shutil.rmtree(output / source, ignore_errors=True)
        theirs = num_bytes / 1e6 / _cpu_seconds([sys.executable, __file__, "--peer", str(model), str(peer), *map(str, files)])
        ours = num_bytes / 1e6 / _cpu_seconds([*codemix, "shards", str(prep)])
        ratios.append(ours / theirs)
        print(f"pair {pair}: SentencePiece {theirs:.2f}, codemix prep shards {ours:.2f}, ratio {ratios[-1]:.2f}", flush=True)
    compared, left_out = _compare(output, peer, files, dtype)
    print(f"identical ids in {compared:,} documents ({left_out:,} left out: empty, or held out and repeated in training)")
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
