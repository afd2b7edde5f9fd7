"""Megabytes of source a CPU second that are segmented, by language: bytes in, segments out, beside tree-sitter's parser alone.

    python benchmarks/segmentation.py corpus/code_python.jsonl.gz corpus/code_multi.jsonl.gz

Rows need `text` and `lang`. Both ways see the same files in turn; the figures are the best of the rounds, because others' load can
only slow a round down, and the share of the parser is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gzip
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import process_time

import orjson

from data_prep.syntax import Grammar, find_spans, grammar_of, parse, tiles


def texts(files: list[Path], most_bytes: int) -> dict[Grammar, list[str]]:
    """Grammar → texts, evenly taken from the files so that there are some `most_bytes` of each."""
    found: defaultdict[Grammar, list[str]] = defaultdict(list)
    for file in files:
        with gzip.open(file) as rows:
            for line in rows:
                row = orjson.loads(line)
                if grammar := grammar_of(row["lang"], row.get("path")):
                    found[grammar].append(row["text"])
    return {grammar: rows[:: max(sum(map(len, rows)) // most_bytes, 1)] for grammar, rows in found.items()}


def parsed(rows: list[str], grammar: Grammar) -> float:
    """CPU seconds of the parser."""
    start = process_time()
    for row in rows:
        parse(row.encode("utf-8"), grammar)
    return process_time() - start


def segmented(rows: list[str], grammar: Grammar) -> float:
    """CPU seconds of all of it."""
    start = process_time()
    for row in rows:
        source = row.encode("utf-8")
        tree = parse(source, grammar)
        if tree is not None:
            tiles(find_spans(tree), source)
    return process_time() - start


def main() -> None:
    """Print a row per language and the whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most-bytes", type=int, default=4_000_000, help="of each language")
    arguments = parser.parse_args()
    total_bytes = total_seconds = 0.0
    print("| language | files | MB | segmented MB/s | parser alone MB/s | parser's share of the time |")
    print("|---|---|---|---|---|---|")
    for grammar, rows in sorted(texts(arguments.files, arguments.most_bytes).items(), key=lambda item: item[0].name):
        size = sum(len(row.encode("utf-8")) for row in rows)
        rounds = [(parsed(rows, grammar), segmented(rows, grammar)) for _ in range(arguments.rounds)]
        alone, whole = min(first for first, _ in rounds), min(second for _, second in rounds)
        share = median(first / second for first, second in rounds)
        print(f"| {grammar.name} | {len(rows)} | {size / 1e6:.2f} | {size / whole / 1e6:.1f} | {size / alone / 1e6:.1f} | {share:.0%} |")
        total_bytes, total_seconds = total_bytes + size, total_seconds + whole
    print(f"| all | | {total_bytes / 1e6:.2f} | {total_bytes / total_seconds / 1e6:.1f} | | |")


if __name__ == "__main__":
    main()
