"""Width transfer (µP): the coordinate check of arXiv 2203.03466 (appendix D.1), groups of the optimizer, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.errors import UserError
from megatron_codemix.model.width import Multipliers, multipliers
from megatron_codemix.parallel import Topology

VOCAB, LENGTH, WINDOWS, BASE = 64, 8, 2, 64
WIDTHS = (64, 128, 256, 512)
RATE, STEPS, SEEDS = 0.01, 4, 3


def _raw(width: int, transfer: bool, seed: int = 0) -> dict:
    rate = {"shape": "constant", "peak": RATE}
    stage = {"name": "main", "tokens": 10**6, "mixture": {"code": 1}, "learning_rate": rate}
    stage |= {"batch_size": WINDOWS, "sequence_length": LENGTH}
    shape = {"num_layers": 2, "hidden_size": width, "num_attention_heads": width // 16, "ffn_hidden_size": 2 * width, "init_std": 0.1}
    return {
        "name": "r",
        "output": "r",
        "tokenizer": "t",
        "sources": {"code": {"path": "c"}},
        "model": shape,
        "stages": [stage],
        "precision": "fp32",
        "micro_batch_size": WINDOWS,
        "seeds": {"init": seed},
        **({"width_transfer": {"base_hidden_size": BASE}} if transfer else {}),
    }


class _Batch:
    def __init__(self, seed: int) -> None:
        tokens = torch.randint(0, VOCAB, (WINDOWS, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
        self.tokens, self.labels = tokens[:, :-1], tokens[:, 1:]
        self.target_mask, self.loss_weights = torch.ones_like(self.tokens), torch.ones(WINDOWS, LENGTH)
        self.positions, self.document_ids = torch.arange(LENGTH).expand(WINDOWS, LENGTH), torch.zeros_like(self.tokens)
        self.prefix = torch.zeros_like(self.tokens, dtype=torch.uint8)


def _moved(width: int, transfer: bool, seed: int) -> dict[str, float]:
    """Mean |x after STEPS updates − x before| of the residual stream behind each layer, and of the logits, on one batch."""
    config = parse_config(_raw(width, transfer, seed), RunConfig, "run")
    found: dict[str, list[torch.Tensor]] = {}
    with Topology.join(config.parallel, seed=seed) as topology:
        engine = MegatronEngine(config, VOCAB, topology)

        def keep(name: str):
            return lambda module, inputs, output: found.setdefault(name, []).append(output[0].detach().clone())

        batch = _Batch(seed)
        handles = [layer.register_forward_hook(keep(f"layer {n}")) for n, layer in enumerate(engine.model.decoder.layers)]
        output = engine.model.output_layer
        handles.append(output.register_forward_hook(keep("logits")))
        handles.append(
            output.register_forward_pre_hook(lambda module, inputs: found.setdefault("seen", []).append(inputs[0].detach().clone()))
        )
        first = output.weight.detach().clone()
        engine.evaluate([batch])
        for _ in range(STEPS):
            engine.train_step([batch], RATE)
        engine.evaluate([batch])
        learnt = output.weight.detach() - first
        for handle in handles:
            handle.remove()
    seen = found.pop("seen")[-1]
    moved = {name: float((kept[-1] - kept[0]).abs().mean()) for name, kept in found.items()}
    return moved | {"logits by the output matrix's update": float((seen @ learnt.T).abs().mean())}


def _slopes(transfer: bool) -> dict[str, float]:
    """Of log2 of the movement over log2 of the width, mean over seeds."""
    moved = {width: [_moved(width, transfer, seed) for seed in range(SEEDS)] for width in WIDTHS}
    x = torch.tensor([math.log2(width) for width in WIDTHS])
    slopes = {}
    for name in moved[WIDTHS[0]][0]:
        y = torch.tensor([math.log2(sum(run[name] for run in moved[width]) / SEEDS) for width in WIDTHS])
        slopes[name] = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slopes


def test_coordinate_check():
    with_transfer, without = _slopes(True), _slopes(False)
    print("with", with_transfer, "without", without)
    logits = with_transfer.pop("logits")
    assert all(abs(slope) < 0.1 for slope in with_transfer.values()), with_transfer
    # the initial output matrix gives logits that vanish as 1 / √width, so what moves through it vanishes too
    assert -0.5 < logits < 0.1
    assert all(slope > 0.2 for slope in without.values()), without


def test_at_the_base_width_nothing_changes():
    def losses(transfer: bool) -> list[float]:
        config = parse_config(_raw(BASE, transfer), RunConfig, "run")
        with Topology.join(config.parallel, seed=0) as topology:
            engine = MegatronEngine(config, VOCAB, topology)
            return [engine.train_step([_Batch(step)], RATE).loss for step in range(4)]

    assert losses(True) == losses(False)


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("module.embedding.word_embeddings.weight", 2, Multipliers()),
        ("module.decoder.layers.0.mlp.linear_fc1.weight", 2, Multipliers(0.5, 0.25, 4.0)),
        ("decoder.layers.1.self_attention.linear_proj.weight", 2, Multipliers(0.5, 0.25, 4.0)),
        ("output_layer.weight", 2, Multipliers(0.25, 0.25, 4.0)),
        ("decoder.final_layernorm.weight", 1, Multipliers()),
        ("decoder.layers.0.self_attention.linear_qkv.bias", 1, Multipliers()),
    ],
)
def test_multipliers_are_those_of_the_paper(name, ndim, expected):
    assert multipliers(parse_config(_raw(4 * BASE, True), RunConfig, "run"), name, ndim) == expected
    assert multipliers(parse_config(_raw(4 * BASE, False), RunConfig, "run"), name, ndim) == Multipliers()


def test_every_parameter_has_its_rate_and_its_decay():
    config = parse_config(_raw(4 * BASE, True), RunConfig, "run")
    with Topology.join(config.parallel, seed=0) as topology:
        engine = MegatronEngine(config, VOCAB, topology)
        engine.train_step([_Batch(0)], RATE)
        found = {
            id(parameter): (group["lr"], group["weight_decay"]) for group in engine._optimizer.param_groups for parameter in group["params"]
        }
        for name, parameter in engine.model.named_parameters():
            expected = multipliers(config, name, parameter.ndim)
            decay = 0.0 if parameter.ndim == 1 else config.optimizer.weight_decay * expected.weight_decay
            assert found[id(parameter)] == (RATE * expected.learning_rate, decay), name


@pytest.mark.parametrize(
    ("change", "expected"), [({"tied_embeddings": True}, "tied matrix"), ({"hidden_size": 48, "num_attention_heads": 3}, "neither 64 nor")]
)
def test_models_that_cannot_be_scaled_are_refused(change, expected):
    raw = _raw(64, True)
    raw["model"] |= change
    with pytest.raises(UserError, match=expected):
        parse_config(raw, RunConfig, "run")
