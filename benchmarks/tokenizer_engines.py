"""Encoding alone, in MB of text a CPU-second: `Tokenizer.encode_batch` against the tokenizer's own library, the same ids.

    python benchmarks/tokenizer_engines.py prepared/tokenizer corpus/code.jsonl.gz corpus/books.jsonl.gz

Runs alternate, each with a tokenizer loaded anew (gigatoken remembers words), on the same documents; the result is the median of the
ratios. Ids are compared once.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson

from megatron_codemix.tokenizer import Tokenizer

_BATCH = 256


def _documents(files: Sequence[Path], megabytes: float) -> list[str]:
    texts: list[str] = []
    for file in files:
        size = 0
        with gzip.open(file, "rb") as lines:
            for line in lines:
                texts.append(orjson.loads(line)["text"])
                size += len(texts[-1])
                if size > megabytes * 1e6:
                    break
    return texts


def _rate(encode: Callable[[list[str]], object], texts: list[str], num_bytes: int) -> float:
    begun = time.process_time()
    for start in range(0, len(texts), _BATCH):
        encode(texts[start : start + _BATCH])
    return num_bytes / 1e6 / (time.process_time() - begun)


def main() -> None:
    """Print a line for each run, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help=".jsonl.gz with a 'text'")
    parser.add_argument("--megabytes", type=float, default=8, help="of each file")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    texts = _documents(arguments.files, arguments.megabytes)
    num_bytes = sum(len(text.encode()) for text in texts)
    first = Tokenizer.load(arguments.tokenizer)
    for text, ids in zip(texts, first.encode_batch(texts), strict=True):
        assert np.array_equal(ids, first.encode(text))
    rows = []
    for _ in range(arguments.runs):
        ours, theirs = Tokenizer.load(arguments.tokenizer), Tokenizer.load(arguments.tokenizer)
        rows.append(
            (
                _rate(ours.encode_batch, texts, num_bytes),
                _rate(lambda batch, by=theirs: [by.encode(text) for text in batch], texts, num_bytes),
            )
        )
        print(f"{first.library} {rows[-1][0]:.1f}   {first.reference.library} {rows[-1][1]:.1f} MB a CPU-second", flush=True)
    ratio = statistics.median(ours / theirs for ours, theirs in rows)
    print(f"median of ratios {ratio:.2f}, on {num_bytes / 1e6:.1f} MB in {len(texts):,} documents")


if __name__ == "__main__":
    main()
