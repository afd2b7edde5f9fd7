"""The name map between GPTModel and the models of transformers: exact both ways, and the layouts it relies on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_codemix.checkpoint import hf
from megatron_codemix.config import ModelConfig, padded_vocab_size

VARIANTS = (
    {},
    {"bias": True},
    {"qkv_bias": True},
    {"qk_norm": True},
    {"norm": "layernorm", "activation": "gelu", "bias": True},
    {"norm": "layernorm", "activation": "gelu"},
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    """A small model and the size of its vocabulary."""
    variant = draw(st.sampled_from(VARIANTS))
    groups, repeats, half = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * repeats
    model = ModelConfig(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=heads * half * 2,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=draw(st.integers(1, 9)),
        tied_embeddings=draw(st.booleans()),
        vocab_multiple=draw(st.sampled_from([1, 8])),
        head_size=draw(st.sampled_from([None, 2, 6])),
        **variant,
    )
    return model, draw(st.integers(1, 20))


def random_state(model: ModelConfig, rows: int, vocab_size: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    state = {entry.ours: torch.randn(entry.shape(model, rows), generator=draw) for entry in hf.entries(model)}
    for entry in hf.entries(model):
        if entry.vocabulary:
            state[entry.ours][vocab_size:] = 0.0
    return state


def to_hf(state: dict[str, torch.Tensor], model: ModelConfig, vocab_size: int) -> dict[str, torch.Tensor]:
    return dict(hf.to_hf({name: tensor.shape for name, tensor in state.items()}, state.__getitem__, model, vocab_size))


def from_hf(state: dict[str, torch.Tensor], model: ModelConfig, rows: int) -> dict[str, torch.Tensor]:
    return dict(hf.from_hf({name: tensor.shape for name, tensor in state.items()}, state.__getitem__, model, rows))


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_there_and_back_is_exact_to_the_bit(shape: tuple[ModelConfig, int]) -> None:
    model, vocab_size = shape
    rows = padded_vocab_size(vocab_size, model.vocab_multiple)
    ours = random_state(model, rows, vocab_size)
    theirs = to_hf(ours, model, vocab_size)
    back = from_hf(theirs, model, rows)
    assert list(back) == list(ours)
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    again = to_hf(back, model, vocab_size)
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)
    elements = sum(tensor.numel() for tensor in theirs.values())
    assert elements == model.num_parameters(vocab_size)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_names_and_shapes_are_those_of_llama(tied: bool, groups: int) -> None:
    model = ModelConfig(
        num_layers=2, hidden_size=24, num_attention_heads=4, num_query_groups=groups, ffn_hidden_size=20, tied_embeddings=tied
    )
    written = to_hf(random_state(model, 128, 100), model, 100)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in theirs.items() if not (tied and name == "lm_head.weight")}
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == wanted


def test_the_fused_matrix_is_cut_by_groups() -> None:
    """megatron-core's order for two groups of two query heads each, of two rows: q0 q1 k0 v0 | q2 q3 k1 v1."""
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=4)
    heads = torch.tensor([0.0, 1.0, 100.0, 200.0, 2.0, 3.0, 101.0, 201.0])
    fused = heads.repeat_interleave(2)[:, None].expand(16, 8)
    query, key, value = hf.split_qkv(fused, model)
    assert query[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert key[:, 0].tolist() == [100, 100, 101, 101]
    assert value[:, 0].tolist() == [200, 200, 201, 201]
    assert torch.equal(hf.join_qkv((query, key, value), model), fused)


def test_gate_comes_before_up_and_padding_rows_go() -> None:
    model = ModelConfig(num_layers=1, hidden_size=4, num_attention_heads=2, ffn_hidden_size=3)
    state = random_state(model, 8, 5)
    theirs = to_hf(state, model, 5)
    fused = state["decoder.layers.0.mlp.linear_fc1.weight"]
    assert torch.equal(theirs["model.layers.0.mlp.gate_proj.weight"], fused[:3])
    assert torch.equal(theirs["model.layers.0.mlp.up_proj.weight"], fused[3:])
    assert theirs["model.embed_tokens.weight"].shape == theirs["lm_head.weight"].shape == (5, 4)


def test_what_does_not_fit_is_refused() -> None:
    model = ModelConfig(num_layers=1, hidden_size=4, num_attention_heads=2, ffn_hidden_size=3)
    state = random_state(model, 8, 5)
    with pytest.raises(ValueError, match=r"missing \['output_layer.weight'\]"):
        to_hf({name: tensor for name, tensor in state.items() if name != "output_layer.weight"}, model, 5)
    with pytest.raises(ValueError, match=r"unknown \['decoder.layers.0.bias'\]"):
        to_hf({**state, "decoder.layers.0.bias": torch.zeros(1)}, model, 5)
    with pytest.raises(ValueError, match=r"linear_qkv.weight: shape \(12, 5\)"):
        to_hf({**state, "decoder.layers.0.self_attention.linear_qkv.weight": torch.zeros(12, 5)}, model, 5)
    with pytest.raises(ValueError, match=r"embedding.word_embeddings.weight: shape \(8, 4\), but this model needs \(9, 4\)"):
        to_hf(state, model, 9)
    theirs = to_hf(state, model, 5)
    with pytest.raises(ValueError, match="5 vocabulary entries do not fit into 4 rows"):
        from_hf(theirs, model, 4)


def test_the_fused_bias_is_cut_as_the_matrix_is() -> None:
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=4, qkv_bias=True)
    bias = torch.tensor([0.0, 1.0, 100.0, 200.0, 2.0, 3.0, 101.0, 201.0]).repeat_interleave(2)
    query, key, value = hf.split_qkv(bias, model)
    assert query.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (key.tolist(), value.tolist()) == ([100, 100, 101, 101], [200, 200, 201, 201])
    assert torch.equal(hf.join_qkv((query, key, value), model), bias)


def test_one_parameter_is_read_at_a_time() -> None:
    model = ModelConfig(num_layers=2, hidden_size=4, num_attention_heads=2, ffn_hidden_size=3)
    theirs = to_hf(random_state(model, 8, 5), model, 5)
    asked: list[str] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        return theirs[name]

    taken = hf.from_hf({name: tensor.shape for name, tensor in theirs.items()}, read, model, 8)
    assert asked == []
    assert next(taken)[0] == "embedding.word_embeddings.weight"
    assert asked == ["model.embed_tokens.weight"]
    next(taken), next(taken)
    assert asked[1:] == ["model.layers.0.input_layernorm.weight", *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")]


def test_what_old_files_hold_besides() -> None:
    """Rotary frequencies are passed over; an output matrix that the config ties must be the embedding."""
    model = ModelConfig(num_layers=1, hidden_size=4, num_attention_heads=2, ffn_hidden_size=3, tied_embeddings=True)
    ours = random_state(model, 8, 5)
    theirs = to_hf(ours, model, 5) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    alias = {"lm_head.weight": theirs["model.embed_tokens.weight"].clone()}
    back = from_hf(theirs | alias, model, 8)
    assert list(back) == list(ours)
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    alias["lm_head.weight"][1, 1] += 1
    with pytest.raises(ValueError, match="ties it to the embedding, and it is another matrix"):
        from_hf(theirs | alias, model, 8)


def test_theirs_that_do_not_fit_are_refused_before_anything_is_read() -> None:
    model = ModelConfig(num_layers=1, hidden_size=4, num_attention_heads=2, ffn_hidden_size=3, qkv_bias=True)
    theirs = to_hf(random_state(model, 8, 5), model, 5)

    def refused(changed: dict[str, torch.Tensor | None], message: str) -> None:
        state = {name: tensor for name, tensor in (theirs | changed).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            hf.from_hf({name: tensor.shape for name, tensor in state.items()}, lambda name: pytest.fail("read"), model, 8)

    refused({"model.layers.0.self_attn.k_proj.bias": None}, r"missing \['model.layers.0.self_attn.k_proj.bias'\]")
    refused({"model.layers.0.self_attn.o_proj.bias": torch.zeros(4)}, r"unknown \['model.layers.0.self_attn.o_proj.bias'\]")
    refused({"model.layers.0.self_attn.k_proj.bias": torch.zeros(5)}, r"k_proj.bias: shape \(5,\), but this model needs \(4,\)")
    refused({"lm_head.weight": torch.zeros(6, 4)}, r"lm_head.weight: shape \(6, 4\), but this model needs \(5, 4\)")
