"""The memory estimate: exact for weights and optimizer states, checked against the tensors themselves."""

import pytest
import torch

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.train.memory import activation_bytes, estimate

RAW = {
    "name": "m",
    "output": "o",
    "tokenizer": "t",
    "sources": {"a": {"path": "a"}},
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64},
    "micro_batch_size": 2,
    "stages": [
        {
            "name": "s",
            "tokens": 512,
            "mixture": {"a": 1},
            "batch_size": 4,
            "sequence_length": length,
            "learning_rate": {"shape": "constant", "peak": 0.1},
        }
        | {"name": f"s{length}"}
        for length in (16, 32)
    ],
}


@pytest.mark.parametrize(("precision", "bytes_per_parameter"), [("fp32", 4 + 4 + 8), ("bf16", 2 + 4 + 12)])
def test_states_are_what_mixed_precision_training_keeps(precision, bytes_per_parameter):
    config = parse_config(RAW | {"precision": precision}, RunConfig, "here")
    memory = estimate(config, rows=128)
    parameters = config.model.num_parameters(128)
    assert memory.weights + memory.gradients + memory.optimizer == parameters * bytes_per_parameter
    assert memory.total > parameters * bytes_per_parameter


def test_the_longest_stage_decides():
    config = parse_config(RAW, RunConfig, "here")
    element = 2
    assert estimate(config, rows=128).activations == activation_bytes(config.model, 2, 32, element)


def test_activations_are_of_the_right_size():
    """A layer's saved tensors, counted by autograd itself, lie within a factor of two of the estimate."""
    hidden, ffn, tokens = 64, 128, 32
    sizes: dict[int, int] = {}  # by storage: a tensor that two operators keep is kept once

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    norm = torch.nn.RMSNorm(hidden)
    qkv, out = torch.nn.Linear(hidden, 3 * hidden, bias=False), torch.nn.Linear(hidden, hidden, bias=False)
    up, down = torch.nn.Linear(hidden, 2 * ffn, bias=False), torch.nn.Linear(ffn, hidden, bias=False)
    x = torch.randn(1, tokens, hidden, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        q, k, v = qkv(norm(x)).view(1, tokens, 3, 4, hidden // 4).permute(2, 0, 3, 1, 4)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = x + out(attended.transpose(1, 2).reshape(1, tokens, hidden))
        gate, value = up(norm(y)).chunk(2, dim=-1)
        kept_alive = y + down(torch.nn.functional.silu(gate) * value)
    model = parse_config(RAW, RunConfig, "here").model.model_copy(
        update={"num_layers": 1, "hidden_size": hidden, "ffn_hidden_size": ffn, "num_query_groups": 4}
    )
    assert kept_alive.shape == x.shape
    for weight in (norm.weight, qkv.weight, out.weight, up.weight, down.weight):
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    guess = activation_bytes(model, 1, tokens, 4)
    assert guess / 2 < sum(sizes.values()) < guess * 2
