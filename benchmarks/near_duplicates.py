"""Near duplicates and decontamination: what is found of planted cases, and what it costs.

    python benchmarks/near_duplicates.py --data code.jsonl.gz more.jsonl.gz
    python benchmarks/near_duplicates.py --data code.jsonl.gz --against benchmarks-folder

Planted: copies of documents, laid out anew and with words renamed one after another until the Jaccard similarity to the original
(of word 5-gram sets, computed here with Python's own sets) is between .80 and .81, in chunks of their own behind all originals.
Printed: the share of copies that go (recall), and of all documents that go the share whose similarity to what stays reaches the
threshold (precision), with originals that go because the data holds duplicates by itself counted apart.

Cost: CPU time per MB of text of our signature and of datasketch's `MinHash.update_batch` on the same shingles (its hashing
included, xxHash in place of SHA-1, which is five times slower), alternating in one process, and the median of the ratios; then of
decontamination, and of everything that `decide` does behind the signatures. Needs `pip install datasketch`, which nothing else does.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import xxhash
from datasketch import MinHash

from data_prep.clean_store import CleanChunk, CleanWriter
from data_prep.dedup import NEAR, Signer, decide
from data_prep.documents import Document, Drop, Tally, text_hash
from data_prep.steps.decontaminate import Decontaminator, prepare
from megatron_codemix.config import Decontaminate, Deduplicate, NearDuplicates, SourceSpec
from megatron_codemix.progress import progress
from megatron_codemix.shards import document_id

_CHUNK = 2000


def read(paths: list[Path], most: int) -> list[str]:
    """Texts of JSON lines, `most` documents of each file."""
    texts = []
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            texts += [orjson.loads(line)["text"] for _, line in zip(range(most), handle)]
    return texts


def shingles(text: str) -> set[tuple[str, ...]]:
    """Sets of five words, the plain way."""
    found = re.findall(r"[^\W_]+", text.lower())
    return {tuple(found[place : place + 5]) for place in range(max(1, len(found) - 4))}


def similarity(left: set, right: set) -> float:
    """Jaccard."""
    return len(left & right) / len(left | right)


def renamed(text: str, drawn: random.Random) -> str | None:
    """A copy at a similarity of .80 … .81, or None where renaming cannot get there (a text too short, or all one word)."""
    original, words = shingles(text), re.split(r"([^\W_]+)", text)
    places = [place for place in range(1, len(words), 2) if len(words[place]) > 1]
    drawn.shuffle(places)
    for start in range(0, len(words), 2):
        words[start] = re.sub(r"[ \t]+", "  ", words[start].replace("\n", "\n\n" if drawn.random() < 0.3 else "\n"))
    changed = min(len(places), len(original) // 60)
    while 0 < changed <= len(places):
        for place in places[:changed]:
            words[place] = "renamed" + words[place][::-1]
        places = places[changed:]
        found = similarity(original, shingles("".join(words)))
        if found < 0.81:
            return "".join(words) if found >= 0.8 else None
        changed = max(1, int((found - 0.805) * len(original) / 12))
    return None


def planted(texts: list[str], copies: int, workers: int, folder: Path) -> None:
    """Plant, decide, print."""
    drawn = random.Random(0)
    chosen = drawn.sample([number for number, text in enumerate(texts) if 500 < len(text) < 50_000], min(copies, len(texts)))
    made = [(number, copy) for number in chosen if (copy := renamed(texts[number], drawn)) is not None]
    everything = [*texts, *(copy for _, copy in made)]
    signer, chunks = Signer(NearDuplicates()), []
    with progress("clean store", len(everything), "documents") as bar:
        for start in range(0, len(everything), _CHUNK):
            place = folder / f"{start:08d}"
            place.mkdir()
            with CleanWriter(place) as writer:
                for number, text in enumerate(everything[start : start + _CHUNK], start):
                    encoded = text.encode()
                    writer.add(Document(str(number), text), len(encoded), text_hash(encoded), signer.sign(text))
                    bar.advance()
            chunks.append(CleanChunk(f"all/{start:08d}", place, folder / "decisions" / f"{start:08d}.npy"))
    begun = time.process_time() + sum(os.times()[2:4])
    counts = decide(chunks, Deduplicate(near=NearDuplicates()), folder / "work", workers)
    spent = time.process_time() + sum(os.times()[2:4]) - begun
    megabytes = sum(len(text.encode()) for text in everything) / 1e6
    by_id = {document_id(str(number)): number for number in range(len(everything))}
    decisions = [one.item() for chunk in chunks for one in chunk.decisions()]
    gone = {number: by_id[kept] for number, (verdict, kept) in enumerate(decisions) if verdict == NEAR}
    right = sum(similarity(shingles(everything[number]), shingles(everything[kept])) >= 0.7 for number, kept in gone.items())
    # An original that went itself stands for no copy: the copy is compared with what stayed instead, which may be less alike.
    originals = [place for place, (number, _) in enumerate(made, len(texts)) if not decisions[made[place - len(texts)][0]][0]]
    found = sum(place in gone for place in originals)
    print(f"{len(everything)} documents, {megabytes:.0f} MB; {counts}")
    print(f"recall: {found} of {len(originals)} copies at Jaccard .80 … .81 ({found / len(originals):.4f})")
    print(
        f"precision: {right} of {len(gone)} that went as near duplicates ({right / len(gone):.4f}); {len(gone) - found} of them not planted"
    )
    print(f"decide: {1000 * spent / megabytes:.1f} ms CPU per MB")


def cost(texts: list[str], megabytes: float, run: Callable[[str], object]) -> float:
    """CPU milliseconds per MB."""
    begun = time.process_time()
    for text in texts:
        run(text)
    return 1000 * (time.process_time() - begun) / megabytes


def theirs(text: str) -> object:
    """datasketch on the same shingles."""
    found = re.findall(r"[^\W_]+", text.lower())
    minhash = MinHash(128, hashfunc=xxhash.xxh32_intdigest)
    minhash.update_batch([" ".join(found[place : place + 5]).encode() for place in range(max(1, len(found) - 4))])
    return minhash.hashvalues


def speed(texts: list[str], against: list[Path], rounds: int, folder: Path) -> None:
    """Alternate, print."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    signer, ratios, spent = Signer(NearDuplicates()), [], []
    for _ in range(rounds):
        spent.append(cost(texts, megabytes, signer.sign))
        ratios.append(cost(texts, megabytes, theirs) / spent[-1])
    print(f"signatures: {statistics.median(spent):.1f} ms CPU per MB, {statistics.median(ratios):.1f} × datasketch ({megabytes:.0f} MB)")
    if not against:
        return
    settings = Decontaminate(against=against)
    begun = time.process_time()
    prepare(settings, folder)
    print(f"tables of the benchmarks: {time.process_time() - begun:.1f} s CPU")
    for modality in ("code", "text"):
        step = Decontaminator(settings, SourceSpec(kind="jsonl", paths=[Path("x")], modality=modality), folder=folder)
        dropped = sum(isinstance(step.apply(Document("", text), Tally()), Drop) for text in texts)
        spent = [cost(texts, megabytes, lambda text, step=step: step.apply(Document("", text), Tally())) for _ in range(rounds)]
        print(f"decontamination as {modality}: {statistics.median(spent):.1f} ms CPU per MB; {dropped} of {len(texts)} documents go")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="JSON lines with a key 'text', also .gz")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="benchmark files or folders")
    parser.add_argument("--documents", type=int, default=4000, help="of each file, at most")
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    texts = read(options.data, options.documents)
    with tempfile.TemporaryDirectory() as folder:
        planted(texts, options.copies, options.workers, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        speed(texts[:2000], options.against, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
