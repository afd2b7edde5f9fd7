"""CPU time per item of the engine's log-likelihoods against lm-evaluation-harness's `hf` backend, on one random model.

    OMP_NUM_THREADS=1 CODEMIX_DATA=DATA python benchmarks/loglikelihood.py [--rounds 5] [--items 200] [--hidden 768 --layers 12 --ffn 2048]
        [--batch-tokens 256 512 1024]

PIQA, ARC-Easy and BoolQ of DATA/benchmarks/nl_reasoning (every k-th row), a vocabulary of 32,000 learned from DATA/corpus.
Both sides are given the same strings, tokenise them in the time that counts, and see the same ids (no start token: the peer's
tokenizer adds none). The peer runs at its best batch size of 1 … 64, found per task before. Sums of log-probabilities
must be within 1e-3 and predictions equal where the best two choices are further apart than that; then both run in turns, and the
median of the rounds' ratios of CPU time (`time.process_time`) is printed, and the geometric mean over the tasks.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval.engine import Continuation, Engine, Settings, open_engine

_TASKS = {
    "piqa": "commonsense_reasoning/piqa.jsonl.gz",
    "arc_easy": "world_knowledge/arc_easy.jsonl.gz",
    "boolq": "reading_comprehension/boolq.jsonl.gz",
}
_PEER_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_LEARN_BYTES = 8_000_000


def make_model(folder: Path, data: Path, options: argparse.Namespace) -> None:
    """A random Llama with a byte-level BPE of `options.vocab` learned from the corpus."""
    texts, size = [], 0
    with gzip.open(data / "corpus" / "nl_textbooks.jsonl.gz", "rt", encoding="utf-8") as handle:
        for line in handle:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1])
            if size > _LEARN_BYTES:
                break
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=learned, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def read_pairs(path: Path, items: int) -> list[list[tuple[str, str]]]:
    """By item: (query, " " + choice) of every choice."""
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    rows = rows[:: max(1, len(rows) // items)][:items]
    return [[(row["query"], " " + choice) for choice in row["choices"]] for row in rows]


def score_ours(engine: Engine, pairs: list[tuple[str, str]]) -> list[float]:
    """Without the start token, as the peer."""
    requests = [Continuation(one.context[1:], one.tail) for one in engine.encode_pairs(pairs)]
    return [one.log_probability for one in engine.score(requests)]


def score_peer(peer: HFLM, pairs: list[tuple[str, str]], batch: int) -> list[float]:
    """lm-evaluation-harness's own path from strings to sums."""
    peer.batch_size_per_gpu = batch
    instances = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return [total for total, _ in peer.loglikelihood(instances, disable_tqdm=True)]


def cpu_seconds(function: Callable[..., object], *arguments: object) -> float:
    """CPU time of this process in function(*arguments)."""
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


def check(items: list[list[tuple[str, str]]], ours: list[float], theirs: list[float]) -> float:
    """The largest difference; predictions must be equal but for ties."""
    at = 0
    for choices in items:
        mine, other = np.array(ours[at : at + len(choices)]), np.array(theirs[at : at + len(choices)])
        first, second = np.sort(other)[::-1][:2]
        assert mine.argmax() == other.argmax() or first - second < 1e-3, (mine, other)
        at += len(choices)
    return float(np.abs(np.array(ours) - np.array(theirs)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = (("rounds", 5), ("items", 200), ("hidden", 768), ("layers", 12), ("ffn", 2048), ("vocab", 32000))
    for name, value in sizes:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[0], help="budgets of the engine to try (0: its default)")
    parser.add_argument("--data", type=Path, default=os.environ.get("CODEMIX_DATA"), help="default: the variable CODEMIX_DATA")
    parser.add_argument("--model", type=Path, help="keep the random model here, or take the one that is there")
    parser.add_argument("--tasks", nargs="*", default=list(_TASKS), choices=list(_TASKS))
    options = parser.parse_args()
    data = Path(options.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        if not (folder / "config.json").is_file():
            make_model(folder, data, options)
        engines = {size: open_engine(folder, Settings(batch_tokens=size or None)) for size in options.batch_tokens}
        any_engine = next(iter(engines.values()))
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)  # the engine's has other kernels
        peer = HFLM(pretrained=theirs, tokenizer=any_engine.tokenizer, batch_size=1, device="cpu")
        print(f"{any_engine.model.model.num_parameters():,} parameters, {torch.get_num_threads()} threads, {options.items} items")
        ratios: dict[int, list[float]] = {size: [] for size in engines}
        for task in options.tasks:
            items = read_pairs(data / "benchmarks" / "nl_reasoning" / _TASKS[task], options.items)
            pairs = list(itertools.chain.from_iterable(items))
            few = pairs[: len(pairs) // 4]
            costs = {size: min(cpu_seconds(score_peer, peer, few, size) for _ in range(2)) for size in _PEER_BATCHES}
            batch = min(costs, key=costs.__getitem__)
            apart = max(check(items, score_ours(engine, pairs), score_peer(peer, pairs, batch)) for engine in engines.values())
            times: dict[int, list[tuple[float, float]]] = {size: [] for size in engines}
            for _ in range(options.rounds):
                theirs = cpu_seconds(score_peer, peer, pairs, batch)
                for size, engine in engines.items():
                    times[size].append((cpu_seconds(score_ours, engine, pairs), theirs))
            for size, pair in times.items():
                ratio = statistics.median(their / mine for mine, their in pair)
                ratios[size].append(ratio)
                mine, their = (statistics.median(one[side] for one in pair) / len(items) * 1e3 for side in (0, 1))
                print(
                    f"{task}: batch tokens {size or 'default'}: ours {mine:.2f} ms/item, peer {their:.2f} ms/item (batch {batch}), "
                    f"ratio {ratio:.2f}, sums apart {apart:.1e}",
                    flush=True,
                )
        for size, found in ratios.items():
            print(f"batch tokens {size or 'default'}: geometric mean {math.prod(found) ** (1 / len(found)):.2f}")


if __name__ == "__main__":
    main()
