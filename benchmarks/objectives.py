"""What objectives cost the loader, and fill-in-the-middle against the usual way to do it, alternating in one process.

    python benchmarks/objectives.py [--files 1500] [--vocab 16384] [--length 1024] [--windows 64] [--rounds 31]

The corpus is the running Python's standard library. Figures are of one thread's processor time: million window tokens and
megabytes of text per second from windows in memory to `Batch`es. The peer of fill-in-the-middle does what StarCoder's fork of
Megatron-LM does with each sample: split at end of text, decode, cut, encode with the tokenizer's own library (SentencePiece), join.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from megatron_codemix.batches import WindowObjective, assemble
from megatron_codemix.config import Objective
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

OBJECTIVES: dict[str, dict[str, Any]] = {
    "clm": {},
    "loss weights": {"loss_weights": {"docstring": 0, "comment": 0.5}},
    "prefix 0.5": {"prefix": {"rate": 0.5}},
    "corruption 0.15": {"corruption": {"rate": 0.15}},
    "corruption 0.15, spans": {"corruption": {"rate": 0.15, "mean_span": 3}},
    "fim 0.5": {"fim": {"rate": 0.5}},
    "fim 0.9": {"fim": {"rate": 0.9}},
    "fim 0.5, kinds": {"fim": {"rate": 0.5}},
}


def read_windows(tokenizer: Tokenizer, texts: list[str], length: int) -> np.ndarray:
    """(n, length + 1) of the texts end to end."""
    end = np.array([tokenizer.end_of_text_id], np.uint32)
    stream = np.concatenate([part for ids in tokenizer.encode_batch(texts) for part in (ids, end)]).astype(np.uint16)
    number = (len(stream) - 1) // length
    return np.stack([stream[index * length : index * length + length + 1] for index in range(number)])


class Ours:
    """Windows → batches under an objective."""

    def __init__(self, tokenizer: Tokenizer, windows: np.ndarray, name: str, at_once: int) -> None:
        self.tokenizer, self.windows, self.at_once = tokenizer, windows, at_once
        self.change = WindowObjective(Objective.model_validate(OBJECTIVES[name]), tokenizer, ("code",), 0)
        self.kinds = np.zeros(windows.shape, np.uint8)
        if name.endswith("kinds"):  # a segment every 100 tokens
            self.kinds[...] = np.arange(windows.shape[1]) // 100 % 6
        self.num_bytes = tokenizer.token_num_bytes.astype(np.uint8)

    def __call__(self, step: int) -> None:
        rows = (step * self.at_once + np.arange(self.at_once)) % len(self.windows)
        assemble(
            self.windows[rows],
            self.kinds[rows],
            end_of_text_id=self.tokenizer.end_of_text_id,
            token_num_bytes=self.num_bytes,
            source_ids=np.zeros(self.at_once, np.int64),
            window_ids=rows,
            epochs=np.full(self.at_once, step),
            micro_batch_size=8,
            objective=self.change,
        )


class Peer:
    """Sample by sample, with SentencePiece."""

    def __init__(self, tokenizer: Tokenizer, windows: np.ndarray, rate: float, at_once: int) -> None:
        self.windows, self.rate, self.at_once, self.end = windows, rate, at_once, tokenizer.end_of_text_id
        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(tokenizer.model)
        self.ids = [tokenizer.special_ids[name] for name in ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>")]
        self.generator = np.random.default_rng(0)

    def __call__(self, step: int) -> None:
        for row in (step * self.at_once + np.arange(self.at_once)) % len(self.windows):
            sample = self.windows[row].astype(np.int64)
            parts, start = [], 0
            for stop in [*np.flatnonzero(sample == self.end).tolist(), len(sample)]:
                if stop > start:
                    parts.append(self.permute(sample[start:stop]))
                parts.append(sample[stop : stop + 1])
                start = stop + 1
            found = np.concatenate(parts)
            missing = max(0, len(sample) - len(found))
            found = np.concatenate((found, np.full(missing, self.ids[3])))[: len(sample)]

    def permute(self, sample: np.ndarray) -> np.ndarray:
        if self.generator.random() >= self.rate:
            return sample
        text = self.processor.decode(sample.tolist())
        first, second = sorted(self.generator.integers(0, len(text) + 1, 2).tolist())
        prefix, middle, suffix = (
            np.array(self.processor.encode(part), np.int64) for part in (text[:first], text[first:second], text[second:])
        )
        before, after, between, _ = ([number] for number in self.ids)
        if self.generator.random() < 0.5:
            return np.concatenate((before, after, suffix, between, prefix, middle)).astype(np.int64)
        return np.concatenate((before, prefix, after, suffix, between, middle)).astype(np.int64)


def seconds(run: Callable[[int], None], step: int) -> float:
    begin = time.process_time()
    run(step)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("files", 1500), ("vocab", 16384), ("length", 1024), ("windows", 64), ("rounds", 31)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))[: options.files]
    texts = [text for file in files if (text := file.read_bytes().decode("utf-8", "ignore"))]
    tokenizer = Tokenizer(train_tokenizer(texts[::3], options.vocab))
    windows = read_windows(tokenizer, texts, options.length)
    per_token = tokenizer.token_num_bytes[windows[:, 1:]].mean()
    print(
        f"{len(windows):,} windows of {options.length} tokens, {per_token:.2f} bytes a token; {options.rounds} rounds of {options.windows}"
    )
    runs: dict[str, Callable[[int], None]] = {name: Ours(tokenizer, windows, name, options.windows) for name in OBJECTIVES}
    runs["peer, fim 0.5"] = Peer(tokenizer, windows, 0.5, options.windows)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(options.rounds + 1):
        for name, run in runs.items():
            spent[name].append(seconds(run, step))
    tokens = options.windows * options.length
    for name, times in spent.items():
        middle = statistics.median(times[1:])
        extra = statistics.median(a - b for a, b in zip(times[1:], spent["clm"][1:], strict=True))
        print(
            f"{name:24s} {tokens / middle / 1e6:8.2f} M tokens/s  {tokens * per_token / middle / 1e6:8.1f} MB/s"
            f"  {extra / tokens * 1e9:8.0f} ns/token over clm"
        )
    ratio = statistics.median(a / b for a, b in zip(spent["peer, fim 0.5"][1:], spent["fim 0.5"][1:], strict=True))
    print(f"fill-in-the-middle at 0.5: {ratio:.2f} × the peer's speed (median of ratios; ours makes whole batches)")


if __name__ == "__main__":
    main()
