"""Shards against stock webdataset on the same documents, in one run, alternating; prints medians of ratios.

    python benchmarks/shards.py [--tokens 32000000] [--rounds 5]

write      documents → tars of packs. Ours also copies and checks every document, hashes, fsyncs, and writes sidecars
           and a manifest; `webdataset.TarWriter` does none of that.
scan       every token of the split once, in order: `SplitReader.packs` / `WebDataset(…).decode()` on our shards
windows    batches of 8 × 2048 (+1) tokens in random order as int64: `SplitReader.read_into` / `WebDataset`, cut into
           windows and sent through a shuffle buffer of 1,000 (which is less random than ours)

Times are CPU seconds of this process, so that a busy machine disturbs less; files are in the page cache.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import webdataset

from megatron_codemix.shards import SplitReader, SplitWriter

PACK_TOKENS, SHARD_TOKENS, VOCAB_SIZE, END_OF_TEXT = 1 << 21, 1 << 23, 32_000, 2
SEQUENCE_LENGTH, BATCH = 2048, 8


def make_documents(num_tokens: int) -> list[np.ndarray]:
    """Documents of 100 to 3,000 random tokens: what the tokens are matters to no one here."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCAB_SIZE, num_tokens).astype(np.uint16)
    ends = np.cumsum(rng.integers(100, 3000, num_tokens // 1000))
    ends = ends[ends < num_tokens]
    tokens[ends - 1] = END_OF_TEXT
    return np.split(tokens[: ends[-1]], ends[:-1])


def write_ours(folder: Path, documents: list[np.ndarray]) -> None:
    """A split of ours."""
    with SplitWriter(
        folder,
        source="benchmark",
        split="train",
        modality="code",
        token_dtype="uint16",
        tokenizer_fingerprint="0" * 64,
        vocab_size=VOCAB_SIZE,
        end_of_text_id=END_OF_TEXT,
        pack_tokens=PACK_TOKENS,
        shard_tokens=SHARD_TOKENS,
        prep={},
    ) as writer:
        for number, tokens in enumerate(documents):
            writer.add(tokens, 4 * tokens.size, number)


def write_stock(folder: Path, documents: list[np.ndarray]) -> None:
    """The same packs of documents by `webdataset.TarWriter`."""
    folder.mkdir()
    sizes = np.array([document.size for document in documents])
    pack = (np.cumsum(sizes) - sizes) // PACK_TOKENS
    bounds = np.flatnonzero(np.diff(pack, prepend=-1, append=pack[-1] + 1)).tolist()
    per_shard = SHARD_TOKENS // PACK_TOKENS
    for shard in range(0, len(bounds) - 1, per_shard):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as writer:
            for low, high in pairwise(bounds[shard : shard + per_shard + 1]):
                rows = np.zeros((high - low, 3), np.uint64)
                rows[:, 0] = np.cumsum(sizes[low:high]) - sizes[low:high]
                rows[:, 1] = 4 * sizes[low:high]
                rows[:, 2] = np.arange(low, high)
                tokens = np.concatenate(documents[low:high])
                counts = {"num_tokens": tokens.size, "num_documents": high - low, "num_bytes": 4 * tokens.size}
                writer.write({"__key__": f"{low:09d}", "tokens.npy": _npy(tokens), "documents.npy": _npy(rows), "json": counts})


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def stock_samples(urls: list[str], shuffled: bool = False):
    """Decoded packs by stock webdataset."""
    return webdataset.WebDataset(urls, shardshuffle=len(urls) if shuffled else False, seed=1, empty_check=False).decode()


def stock_batches(urls: list[str]) -> Iterator[np.ndarray]:
    """int64 batches (8, 2049) the way webdataset is used for this: cut each pack, shuffle in a buffer."""

    def windows(samples):
        for sample in samples:
            tokens = sample["tokens.npy"]
            for start in range(0, tokens.size - SEQUENCE_LENGTH, SEQUENCE_LENGTH):
                yield tokens[start : start + SEQUENCE_LENGTH + 1]

    def collate(some):
        out = np.empty((len(some), SEQUENCE_LENGTH + 1), np.int64)
        for row, window in enumerate(some):
            out[row] = window
        return out

    stream = stock_samples(urls, shuffled=True).compose(windows).shuffle(1000, initial=1000)
    yield from stream.batched(BATCH, collation_fn=collate, partial=False)


def our_batches(folder: Path) -> Iterator[np.ndarray]:
    """int64 batches (8, 2049) of a permutation of all windows; opening the split is included."""
    reader = SplitReader(folder)
    order = np.random.default_rng(1).permutation(reader.num_windows(SEQUENCE_LENGTH))
    for start in range(0, order.size - BATCH + 1, BATCH):
        out = np.empty((BATCH, SEQUENCE_LENGTH + 1), np.int64)
        reader.read_into(order[start : start + BATCH], SEQUENCE_LENGTH, out)
        yield out


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of this process for one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def main() -> None:
    """Run all three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_000_000, help="size of the split")
    parser.add_argument("--rounds", type=int, default=5, help="alternations")
    arguments = parser.parse_args()
    documents = make_documents(arguments.tokens)
    num_tokens = sum(document.size for document in documents)
    with tempfile.TemporaryDirectory() as parent:
        base = Path(parent)
        write_ours(base / "split", documents)
        urls = sorted(str(path) for path in (base / "split").glob("*.tar"))
        seen = {"ours": 0, "stock": 0}

        def scan(who: str, arrays: Iterator[np.ndarray]) -> None:
            seen[who] = sum(int(array.size) if array.max() < VOCAB_SIZE else 0 for array in arrays)

        def drain(who: str, batches: Iterator[np.ndarray]) -> None:
            seen[who] = sum(batch.shape[0] * SEQUENCE_LENGTH for batch in batches)

        pairs = {
            "write": (
                lambda number: write_ours(base / f"ours-{number}", documents),
                lambda number: write_stock(base / f"stock-{number}", documents),
            ),
            "scan": (
                lambda number: scan("ours", (pack.tokens for pack in SplitReader(base / "split").packs())),
                lambda number: scan("stock", (sample["tokens.npy"] for sample in stock_samples(urls))),
            ),
            "windows": (lambda number: drain("ours", our_batches(base / "split")), lambda number: drain("stock", stock_batches(urls))),
        }
        print(f"{num_tokens:,} tokens, {len(documents):,} documents, {len(urls)} shards")
        print(f"million tokens per CPU second, medians of {arguments.rounds} rounds")
        for name, (ours, stock) in pairs.items():
            rates: list[tuple[float, float]] = []
            for number in range(arguments.rounds):
                times = {}
                for who, action in (("ours", ours), ("stock", stock)) if number % 2 else (("stock", stock), ("ours", ours)):
                    seen[who] = num_tokens
                    times[who] = cpu_seconds(lambda action=action, number=number: action(number))
                rates.append((seen["ours"] / times["ours"] / 1e6, seen["stock"] / times["stock"] / 1e6))
            ratio = statistics.median(mine / theirs for mine, theirs in rates)
            mine, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
            print(f"{name:8} ours {mine:8.1f}   webdataset {theirs:8.1f}   ratio {ratio:5.2f}")
        opening = statistics.median(cpu_seconds(lambda: SplitReader(base / "split")) for _ in range(20))
        print(f"open     {1e3 * opening:.2f} ms for {len(urls)} shards")


if __name__ == "__main__":
    main()
