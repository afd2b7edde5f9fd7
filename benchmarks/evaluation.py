"""Speed of `codemix eval` against the usual recipes on transformers, alternating, on one random model.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--rounds 5] [--hidden 256] [--layers 4] [--vocab 8000]
        [--context 512] [--batch-tokens N]

- bits per byte: documents of the running Python's standard library; the peer is right-padded batches of eight windows
  with a full (B, S, V) float log-softmax, in the order of the data (as the transformers documentation has it).
- multiple choice: synthetic questions, 60-token contexts, 4 choices; the peer runs every choice with its context and
  takes the log-softmax of all positions, eight rows at a time, sorted by length.
- generation: the peer is `model.generate`, eight prompts at a time, greedy; ours looks for stop strings besides.

Prints bytes, questions, tokens per CPU-second of both, and the median of the rounds' ratios. Scores of both are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval.engine import Continuation, Decoding, Engine, Prompt, Settings, open_engine

_PEER_ROWS = 8


def make_model(folder: Path, texts: list[str], options: argparse.Namespace) -> Engine:
    """A random Llama with a byte-level BPE learned from the texts."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=options.vocab, special_tokens=["<s>", "</s>"], show_progress=False)
    learned.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=learned, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        max_position_embeddings=options.context,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_engine(folder, Settings(batch_tokens=options.batch_tokens or None))


def documents(num_bytes: int) -> list[str]:
    """Standard-library files, in the order of their names, about `num_bytes` in all."""
    texts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if total >= num_bytes:
            break
        text = path.read_text("utf-8", errors="replace")[:20_000]
        texts.append(text)
        total += len(text.encode())
    return texts


@torch.inference_mode()
def peer_scores(engine: Engine, model: Any, requests: list[Continuation], by_length: bool) -> np.ndarray:
    """Batches of eight rows, log-softmax of every position."""
    rows = [np.array((*one.context, *one.tail[:-1])) for one in requests]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index])) if by_length else list(range(len(rows)))
    sums = np.zeros(len(rows))
    for at in range(0, len(order), _PEER_ROWS):
        batch = order[at : at + _PEER_ROWS]
        tokens_BS = engine.model.pad([rows[index] for index in batch])
        log_probabilities_BSV = torch.log_softmax(model(input_ids=tokens_BS, use_cache=False).logits.float(), -1)
        for row, index in enumerate(batch):
            targets = torch.tensor(requests[index].tail)
            positions = torch.arange(len(rows[index]) - len(targets), len(rows[index]))
            sums[index] = float(log_probabilities_BSV[row, positions, targets].sum())
    return sums


@torch.inference_mode()
def peer_generate(engine: Engine, model: Any, prompts: list[str], count: int) -> int:
    """New tokens made by transformers' own loop."""
    made = 0
    tokenizer = engine.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", "</s>"
    for at in range(0, len(prompts), _PEER_ROWS):
        batch = tokenizer(prompts[at : at + _PEER_ROWS], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        out = model.generate(**batch, max_new_tokens=count, do_sample=False, pad_token_id=1)
        made += out[:, batch["input_ids"].shape[1] :].numel()
    return made


def compare(name: str, unit: str, amount: float, ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> None:
    """Alternate both, print medians and the median of the ratios."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair = []
        for function in (ours, peer):
            started = time.process_time()
            function()
            pair.append(time.process_time() - started)
        times.append((pair[0], pair[1]))
    mine, theirs = (statistics.median(pair[side] for pair in times) for side in (0, 1))
    ratio = statistics.median(their / my for my, their in times)
    print(f"{name}: ours {amount / mine:,.0f} {unit}/CPU-s, peer {amount / theirs:,.0f} {unit}/CPU-s, median ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("hidden", 256), ("layers", 4), ("vocab", 8000), ("context", 512), ("batch-tokens", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    texts = documents(60_000)
    with tempfile.TemporaryDirectory() as folder:
        engine = make_model(Path(folder), texts, options)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)  # the engine's has other kernels
    num_bytes = sum(len(text.encode()) for text in texts)
    windows, _ = engine.windows(engine.encode(texts))
    print(f"{model.num_parameters():,} parameters, {num_bytes:,} bytes, {len(windows)} windows")
    np.testing.assert_allclose(sums(engine, windows), peer_scores(engine, model, windows, False), rtol=1e-5)
    ours, peer = lambda: engine.score(windows), lambda: peer_scores(engine, model, windows, False)
    compare("bits per byte", "bytes", num_bytes, ours, peer, options.rounds)

    generator = np.random.default_rng(0)
    ids = lambda count: tuple(generator.integers(2, options.vocab, count).tolist())  # noqa: E731
    contexts = [ids(size) for size in generator.integers(40, 80, 64)]
    choices = [Continuation(context, ids(size)) for context in contexts for size in generator.integers(2, 10, 4)]
    np.testing.assert_allclose(sums(engine, choices), peer_scores(engine, model, choices, True), rtol=1e-5)
    ours, peer = lambda: engine.score(choices), lambda: peer_scores(engine, model, choices, True)
    compare("multiple choice", "questions", 64, ours, peer, options.rounds)

    prompts = [Prompt(text[:200], str(index)) for index, text in enumerate(texts[:16])]
    made = sum(one.tokens for (one,) in engine.generate(prompts, Decoding(48)))
    plain = [prompt.text for prompt in prompts]
    assert made == peer_generate(engine, model, plain, 48), "a random model ended a text; choose another seed"
    ours, peer = lambda: engine.generate(prompts, Decoding(48, ("\nclass", "\ndef"))), lambda: peer_generate(engine, model, plain, 48)
    compare("generation", "tokens", made, ours, peer, options.rounds)


def sums(engine: Engine, requests: list[Continuation]) -> np.ndarray:
    """Ours, as the peer gives them."""
    return np.array([one.log_probability for one in engine.score(requests)])


if __name__ == "__main__":
    main()
