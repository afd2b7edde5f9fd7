"""Our loader against megatron-core's GPTDataset blend: the same tokens, the same mixture, alternating in one process.

    python benchmarks/loader.py [--tokens 24e6] [--batches 40] [--rounds 101]

Both deliver batches of 8 × 2048 tokens as int64 tensors, in process and with the page cache warm. Ours are whole
`Batch`es (labels, masks, weights, positions, document ids, modality, bytes); the peer's are what its collate
function gives (tokens, labels, loss mask, position ids; no attention mask, no document ids). Then start-up: from
nothing to the first batch, for corpora of 1, 10 and 100 times the size (the same shards, hard-linked under more names).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_codemix.batches import Batch, Loader
from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.files import write_json
from megatron_codemix.mixture import compile_plan
from megatron_codemix.shards import SplitReader, SplitWriter

BATCH, LENGTH, VOCABULARY, END = 8, 2048, 32_000, 2
MIXTURE = {"code": 0.5, "books": 0.3, "docs": 0.2}
NUM_BYTES = np.random.default_rng(0).integers(1, 12, VOCABULARY)


def documents(source: int, tokens: int) -> Iterator[np.ndarray]:
    """Random documents of log-normal length (median 600 tokens), each closed by end-of-text."""
    rng = np.random.default_rng(source)
    while tokens > 0:
        ids = rng.integers(END + 1, VOCABULARY, max(2, int(rng.lognormal(6.4, 1.0)))).astype(np.uint16)
        ids[-1] = END
        tokens -= len(ids)
        yield ids


def write_corpus(root: Path, tokens: int) -> None:
    """The same documents as our shards and as the peer's .bin and .idx."""
    for source, (name, share) in enumerate(MIXTURE.items()):
        theirs = IndexedDatasetBuilder(str(root / f"{name}.bin"), dtype=np.uint16)
        settings = {"source": name, "split": "train", "modality": "text", "token_dtype": "uint16", "tokenizer_fingerprint": "0" * 64}
        sizes = {"vocab_size": VOCABULARY, "end_of_text_id": END, "pack_tokens": 1 << 21, "shard_tokens": 1 << 22, "prep": {}}
        with SplitWriter(root / "1" / name / "train", **settings, **sizes) as ours:
            for number, ids in enumerate(documents(source, int(tokens * share))):
                ours.add(ids, num_bytes=int(NUM_BYTES[ids].sum()), document_id=number)
                theirs.add_document(torch.from_numpy(ids.astype(np.int32)), [len(ids)])
        theirs.finalize(str(root / f"{name}.idx"))


def enlarge(root: Path, times: int) -> None:
    """A corpus of `times` the size: every shard under that many names."""
    for name in MIXTURE:
        source, target = root / "1" / name / "train", root / str(times) / name / "train"
        target.mkdir(parents=True)
        manifest = json.loads((source / "manifest.json").read_text())
        shards = []
        for _ in range(times):
            for entry in manifest["shards"]:
                new = f"shard-{len(shards):05d}"
                os.link(source / entry["name"], target / f"{new}.tar")
                os.link(source / entry["name"].replace(".tar", ".index.npy"), target / f"{new}.index.npy")
                shards.append({**entry, "name": f"{new}.tar"})
        manifest.update({key: manifest[key] * times for key in ("num_tokens", "num_documents", "num_bytes")}, shards=shards)
        write_json(target / "manifest.json", manifest)


def our_loader(root: Path, num_batches: int) -> Loader:
    """Shards, plan and loader, opened from nothing."""
    rate = {"shape": "constant", "peak": 0.001}
    stage = {"name": "main", "tokens": num_batches * BATCH * LENGTH, "mixture": MIXTURE, "batch_size": BATCH, "sequence_length": LENGTH}
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    sources = {name: {"path": str(root / name), "max_epochs": 1e6} for name in MIXTURE}
    raw = {"name": "b", "output": "o", "tokenizer": "t", "sources": sources, "model": shape, "stages": [{**stage, "learning_rate": rate}]}
    config = parse_config(raw, RunConfig, "benchmark")
    readers = {name: SplitReader(source.path / "train") for name, source in config.sources.items()}
    windows = {name: reader.num_windows for name, reader in readers.items()}
    plan = compile_plan(config, windows, {name: reader.manifest.fingerprint for name, reader in readers.items()})
    return Loader(plan, readers, token_num_bytes=NUM_BYTES, micro_batch_size=BATCH)


def their_batches(root: Path, num_batches: int) -> Iterator[dict[str, torch.Tensor]]:
    """The peer's dataset behind a DataLoader without workers (workers make it slower), built from nothing."""
    tokenizer: Any = types.SimpleNamespace(vocab_size=VOCABULARY, eod=END, pad=None, unique_identifiers={"benchmark": "loader"})
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend=([str(root / name) for name in MIXTURE], list(MIXTURE.values())),
        split="1,0,0",
        path_to_cache=tempfile.mkdtemp(dir=root),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [num_batches * BATCH, 0, 0], lambda: True, config).build()[0]
    assert dataset is not None
    return iter(torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=0))


def timed(take: Callable[[], Batch | dict[str, torch.Tensor]], number: int) -> float:
    """Million tokens per second of processor time over `number` batches.

    Both sides use one thread and wait for nothing, so that is the wall clock of an idle machine; on a busy one it
    counts what the others take less than the wall clock does.
    """
    begin = time.process_time()
    for _ in range(number):
        found = take()
    seconds = time.process_time() - begin
    tokens = found.tokens if isinstance(found, Batch) else found["tokens"]
    assert tokens.shape == (BATCH, LENGTH), tokens.shape
    assert tokens.dtype == torch.int64, tokens.dtype
    return number * BATCH * LENGTH / seconds / 1e6


def throughput(root: Path, rounds: int, batches: int) -> float:
    """Prints both loaders' speed; returns the median of the rounds' ratios."""
    total = (rounds + 1) * batches
    loader = our_loader(root / "1", total)
    steps = iter(range(total))
    theirs = their_batches(root, total)
    pairs = []
    for number in range(rounds + 1):
        sides = [("ours", lambda: loader.batches(next(steps))[0]), ("theirs", lambda: next(theirs))]
        speeds = {name: timed(take, batches) for name, take in (sides if number % 2 else sides[::-1])}
        if number:  # the first round warms the page cache
            pairs.append((speeds["ours"], speeds["theirs"]))
            if number % 10 == 1:
                print(f"round {number}: ours {speeds['ours']:7.1f} Mtok/s, GPTDataset {speeds['theirs']:6.1f} Mtok/s", flush=True)
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(mine / other for mine, other in pairs)
    print(f"medians of {rounds} rounds, per second of processor time: ours {ours:.1f} Mtok, GPTDataset {peer:.1f} Mtok")
    print(f"median of ratios {ratio:.2f} (wanted: at least 5)")
    return ratio


def start_up(root: Path, tokens: int) -> None:
    """Seconds from nothing to the first batch, by corpus size."""
    for times in (1, 10, 100):
        if times > 1:
            enlarge(root, times)
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            loader = our_loader(root / str(times), 1_000_000)
            loader.batches(0)
            seconds.append(time.perf_counter() - begin)
        shards = sum(len(reader.manifest.shards) for reader in loader.readers.values())
        print(f"start-up, {tokens * times / 1e6:,.0f} million tokens in {shards:,} shards: {1000 * statistics.median(seconds):.1f} ms")
    begin = time.perf_counter()
    next(their_batches(root, tokens // (BATCH * LENGTH)))
    print(f"start-up of GPTDataset, {tokens / 1e6:,.0f} million tokens, one epoch: {1000 * (time.perf_counter() - begin):.1f} ms")


def main() -> None:
    """Write the corpus, compare, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=24e6, help="tokens of the corpus")
    parser.add_argument("--batches", type=int, default=40, help="batches per round and side")
    parser.add_argument("--rounds", type=int, default=101, help="short rounds in alternation, so that both meet the same machine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # The peer asks for its rank while it builds its index.
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_corpus(root, int(arguments.tokens))
        throughput(root, arguments.rounds, arguments.batches)
        start_up(root, int(arguments.tokens))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
