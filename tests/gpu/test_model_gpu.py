"""The model and the engine on a GPU: the same figures as on the CPU, within the rounding of the kernels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.kernels import DocumentLayout, attention, vocab_parallel_cross_entropy
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader, write_pieces

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; torch sees none here")

VOCAB, LENGTH = 100, 64


@dataclasses.dataclass(frozen=True)
class TinyBatch:
    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None


def batch(seed: int) -> TinyBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (4, LENGTH + 1), generator=generator)
    ones = torch.ones(4, LENGTH)
    ids = (torch.rand(4, LENGTH, generator=generator) < 0.1).long().cumsum(1)
    return TinyBatch(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, torch.arange(LENGTH).expand(4, -1), ids)


FAMILIES = {
    "Llama 3.1": {"rope_scaling": {"factor": 4.0, "original_positions": 32}},
    "Mistral": {"sliding_window": 9, "head_size": 32},
    "Qwen2": {"qkv_bias": True, "tied_embeddings": True},
    "Qwen3": {"qk_norm": True},
    "StarCoder2": {"norm": "layernorm", "activation": "gelu", "bias": True, "sliding_window": 20, "tied_embeddings": True},
}


def run_config(precision: str, **model: object) -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 128} | model
    stage = {
        "name": "only", "tokens": 25600, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": precision,
        "model": model, "stages": [stage],
    }  # fmt: skip
    return parse_config(raw, RunConfig, "test")


@pytest.fixture(scope="module")
def topology():
    with Topology.join(ParallelConfig()) as joined:
        yield joined


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_masked_attention_is_each_document_alone(dtype, tolerance, prefix):
    """With `prefix` positions at the beginning of each document that all of it sees."""
    generator = torch.Generator().manual_seed(0)
    ids = (torch.rand(3, LENGTH, generator=generator) < 0.1).long().cumsum(1)
    if prefix:
        begins = torch.searchsorted(ids, ids)  # the first position of each document
        ids = torch.stack((ids, (torch.arange(LENGTH) - begins < prefix).long()))
    q, k, v = (torch.randn(LENGTH, 3, heads, 16, generator=generator) for heads in (4, 2, 2))
    wanted = attention._each_document(q, k, v, DocumentLayout(ids), None)
    ours = attention.document_attention(*(x.to("cuda", dtype) for x in (q, k, v)), DocumentLayout(ids.cuda()))
    assert (ours.float().cpu() - wanted).abs().max() < tolerance


def test_cross_entropy_is_torch():
    logits = torch.randn(32, 4, 128, generator=torch.Generator().manual_seed(0)).cuda()
    labels = torch.randint(0, VOCAB, (32, 4), generator=torch.Generator().manual_seed(1)).cuda()
    exact_leaf, leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    exact = cross_entropy(exact_leaf[..., :VOCAB].flatten(0, 1), labels.flatten(), reduction="none").view(32, 4)
    losses = vocab_parallel_cross_entropy(leaf, labels, VOCAB)
    assert torch.allclose(losses, exact, atol=1e-5)
    (wanted,), (grad,) = torch.autograd.grad(exact.sum(), exact_leaf), torch.autograd.grad(losses.sum(), leaf)
    assert torch.allclose(grad, wanted, atol=1e-6)
    assert torch.count_nonzero(grad[..., VOCAB:]) == 0


@pytest.mark.parametrize("family", ["Llama", *FAMILIES])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_first_losses_are_those_of_the_formula(topology, precision, tolerance, family):
    """Packed windows against each document computed alone, which takes the causal kernel."""
    engine = MegatronEngine(run_config(precision, **FAMILIES.get(family, {})), VOCAB, topology)
    packed = batch(0)
    nats, targets = engine.evaluate([packed])
    alone = 0.0
    for row in range(4):
        for document in packed.document_ids[row].unique():
            here = packed.document_ids[row] == document
            log_probabilities = engine.log_probabilities(packed.tokens[row, here][None]).cpu()
            alone -= log_probabilities.gather(-1, packed.labels[row, here][None, :, None]).sum().item()
    assert targets == 4 * LENGTH
    assert nats / targets == pytest.approx(alone / targets, abs=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_and_resume(topology, tmp_path, precision):
    first, resumed = (MegatronEngine(run_config(precision), VOCAB, topology) for _ in range(2))
    for step in range(3):
        first.train_step([batch(step)], 1e-3)
    write_pieces(tmp_path / "rank-00000-of-00001.safetensors", first.pieces(), first.step)
    resumed.load_pieces(PieceReader(tmp_path))
    assert resumed.step == 3
    for a, b in zip(first.model.parameters(), resumed.model.parameters(), strict=True):
        assert a.is_cuda
        assert torch.equal(a, b)
    for step in range(3, 6):
        wanted, ours = first.train_step([batch(step)], 1e-3), resumed.train_step([batch(step)], 1e-3)
        assert ours.loss == pytest.approx(wanted.loss, rel=1e-5 if precision == "fp32" else 1e-3)
        assert ours.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-3 if precision == "fp32" else 2e-2)
