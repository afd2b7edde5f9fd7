"""One-process training against a plain PyTorch model of the same shape, alternating in one run.

    OMP_NUM_THREADS=2 python benchmarks/train_step.py [--hidden 256 --layers 4 --vocab 8192 …]

The peer is what one would write by hand: pre-norm Llama blocks on F.linear, nn.RMSNorm and
scaled_dot_product_attention, rotary tables computed once, F.cross_entropy, fused AdamW, clip_grad_norm_. It starts
from our weights and sees the same batches; the losses of both are compared at the end, so that the ratio is of equal
work. CPU seconds are told beside wall seconds, for machines that others use too. The target is a ratio (peer's
seconds / ours) of 0.95 or more, with packed documents and without.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology


class PlainBlock(nn.Module):
    """One Transformer layer of the Llama family."""

    def __init__(self, hidden: int, heads: int, groups: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, hidden // heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, groups * self.size, bias=False)
        self.value = nn.Linear(hidden, groups * self.size, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate, self.up = nn.Linear(hidden, ffn, bias=False), nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        windows, positions, hidden = x.shape
        h = self.norm1(x)
        q = self.query(h).view(windows, positions, self.heads, self.size).transpose(1, 2)
        k = self.key(h).view(windows, positions, self.groups, self.size).transpose(1, 2)
        v = self.value(h).view(windows, positions, self.groups, self.size).transpose(1, 2)
        q, k = q * cos + rotate(q) * sin, k * cos + rotate(k) * sin
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.groups != self.heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(windows, positions, hidden))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x: Tensor) -> Tensor:
    """(a, b) → (−b, a) over the halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class PlainModel(nn.Module):
    """The peer, with an output matrix of its own."""

    def __init__(self, shape: argparse.Namespace) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(PlainBlock(shape.hidden, shape.heads, shape.groups, shape.ffn) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        size = shape.hidden // shape.heads
        angles = torch.outer(torch.arange(shape.length).float(), 10_000.0 ** (-torch.arange(0, size, 2).float() / size))
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (B, S, V)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, mask)
        return self.head(self.norm(x))


def copy_weights(ours: Any, peer: PlainModel, shape: argparse.Namespace) -> None:
    """Give the peer our initial weights; megatron-core keeps a group's queries, key and value together."""
    with torch.no_grad():
        peer.embedding.weight.copy_(ours.embedding.word_embeddings.weight[: shape.vocab])
        peer.head.weight.copy_(ours.output_layer.weight[: shape.vocab])
        peer.norm.weight.copy_(ours.decoder.final_layernorm.weight)
        size, per_group = shape.hidden // shape.heads, shape.heads // shape.groups
        for layer, block in zip(ours.decoder.layers, peer.blocks, strict=True):
            qkv = layer.self_attention.linear_qkv.weight.view(shape.groups, per_group + 2, size, shape.hidden)
            block.query.weight.copy_(qkv[:, :per_group].reshape(-1, shape.hidden))
            block.key.weight.copy_(qkv[:, per_group].reshape(-1, shape.hidden))
            block.value.weight.copy_(qkv[:, per_group + 1].reshape(-1, shape.hidden))
            block.out.weight.copy_(layer.self_attention.linear_proj.weight)
            gate, up = layer.mlp.linear_fc1.weight.chunk(2)
            block.gate.weight.copy_(gate)
            block.up.weight.copy_(up)
            block.down.weight.copy_(layer.mlp.linear_fc2.weight)
            block.norm1.weight.copy_(layer.input_layernorm.weight)
            block.norm2.weight.copy_(layer.pre_mlp_layernorm.weight)


class PlainTrainer:
    """The peer's training loop: accumulate micro-batches, clip, AdamW."""

    def __init__(self, peer: PlainModel) -> None:
        self.model = peer
        matrices = [p for p in peer.parameters() if p.ndim > 1]
        norms = [p for p in peer.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(self, batches: list[PackedBatch], masked: bool) -> float:
        """One optimizer step; returns nats per target."""
        self.optimizer.zero_grad()
        targets, total = sum(batch.labels.numel() for batch in batches), 0.0
        for batch in batches:
            mask = None
            if masked:
                same = batch.document_ids[:, :, None] == batch.document_ids[:, None, :]
                mask = same.tril_()[:, None]
            logits = self.model(batch.tokens, mask)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum") / targets
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total


@dataclass(frozen=True)
class PackedBatch:
    """The fields of `batches.Batch` that an engine reads."""

    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None


def make_batches(shape: argparse.Namespace, step: int, packed: bool) -> list[PackedBatch]:
    """A global batch of random tokens; documents have a mean length of `shape.document` tokens (geometric)."""
    generator = torch.Generator().manual_seed(step)
    batches = []
    for _ in range(shape.accumulate):
        tokens = torch.randint(0, shape.vocab, (shape.batch, shape.length + 1), generator=generator)
        starts = torch.rand(shape.batch, shape.length, generator=generator) < 1.0 / shape.document
        ids = starts.long().cumsum(1) if packed else torch.zeros_like(starts, dtype=torch.long)
        ones = torch.ones(shape.batch, shape.length)
        positions = torch.arange(shape.length).expand(shape.batch, -1)
        batches.append(PackedBatch(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, positions, ids))
    return batches


def run_config(shape: argparse.Namespace) -> RunConfig:
    """Our side's config: only the model, the optimizer and the precision matter here."""
    model = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.groups,
        "ffn_hidden_size": shape.ffn,
    }
    stage = {
        "name": "bench",
        "tokens": 1e6,
        "mixture": {"random": 1},
        "batch_size": shape.batch * shape.accumulate,
        "sequence_length": shape.length,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }
    raw = {
        "name": "bench",
        "output": "unused",
        "tokenizer": "unused",
        "sources": {"random": {"path": "unused"}},
        "precision": "fp32",
        "micro_batch_size": shape.batch,
        "model": model,
        "stages": [stage],
    }
    return parse_config(raw, RunConfig, "benchmark")


def compare(shape: argparse.Namespace, topology: Topology, packed: bool) -> None:
    """Alternate steps of both and print the medians."""
    engine = MegatronEngine(run_config(shape), shape.vocab, topology)
    peer = PlainModel(shape)
    copy_weights(engine.model, peer, shape)
    trainer = PlainTrainer(peer)
    wall: dict[str, list[float]] = {"ours": [], "peer": []}
    busy: dict[str, list[float]] = {"ours": [], "peer": []}
    gap = 0.0
    for step in range(shape.warmup + shape.steps):
        batches = make_batches(shape, step, packed)
        losses = {}
        # who goes first alternates as well: the second finds a warmer machine
        for name in ("ours", "peer") if step % 2 else ("peer", "ours"):
            start, start_busy = time.perf_counter(), time.process_time()
            losses[name] = engine.train_step(batches, 1e-3).loss if name == "ours" else trainer.step(batches, masked=packed)
            if step >= shape.warmup:
                wall[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - start_busy)
        gap = max(gap, abs(losses["ours"] - losses["peer"]))
    assert gap < 1e-3 * math.log(shape.vocab), f"the two did not do the same work: losses differ by {gap}"
    tokens = shape.batch * shape.accumulate * shape.length
    speeds = (f"{name} {tokens / statistics.median(wall[name]):,.0f} tokens/s" for name in ("ours", "peer"))
    print(f"{'packed' if packed else 'causal'}: {', '.join(speeds)}; largest loss difference {gap:.1e}")
    for what, seconds in (("wall", wall), ("CPU", busy)):
        ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
        low, middle, high = statistics.quantiles(ratios)
        print(f"  peer's {what} seconds / ours: median {middle:.3f} (quartiles {low:.3f} … {high:.3f}, {len(ratios)} steps)", flush=True)


def main() -> None:
    """Compare with packed documents and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "hidden": 256, "layers": 4, "heads": 4, "groups": 2, "ffn": 704, "vocab": 8192, "batch": 4, "accumulate": 2, "length": 512,
        "document": 300, "steps": 20, "warmup": 3,
    }  # fmt: skip
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    shape = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {vars(shape)}")
    with Topology.join(run_config(shape).parallel) as topology:
        for packed in (False, True):
            compare(shape, topology, packed)


if __name__ == "__main__":
    main()
