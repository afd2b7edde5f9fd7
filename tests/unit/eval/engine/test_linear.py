"""Products by oneDNN: the same numbers as PyTorch's own, in models too, and only where they are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from eval.engine import Continuation, Decoding, Prompt, Settings, linear, open_engine
from eval.engine.linear import FastConv1D, FastLinear, use_fast_linear

WIDE = {"hidden_size": 256, "intermediate_size": 320, "max_position_embeddings": 256, "initializer_range": 0.05}
"""Above the threshold with some tens of tokens."""

needs_onednn = pytest.mark.skipif(not linear.has_onednn(), reason="products run by oneDNN on AMD's processors alone")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def counted(monkeypatch):
    """Shapes of the products that oneDNN computes."""
    shapes, original = [], linear._onednn

    def count(x, weight, bias):
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return original(x, weight, bias)

    monkeypatch.setattr(linear, "_onednn", count)
    return shapes


@pytest.mark.parametrize("bias", [None, random(700, seed=2)])
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (random(70, 300), random(700, 300, seed=1)),
        (random(3, 80, 256)[:, -30:], random(900, 256, seed=1)[100:800]),  # neither begins where its memory does
        (random(600, 70).t(), random(600, 700, seed=1).t()),
        (random(1, 1, 256), random(700, 256, seed=1)),  # below the threshold
        (random(0, 256), random(700, 256, seed=1)),
    ],
)
def test_products_are_those_of_pytorch(x, weight, bias):
    with torch.inference_mode():
        found, expected = (
            linear.linear(x, weight, bias),
            nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double()),
        )
    assert found.dtype == torch.float32 and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=5e-5, rtol=0)


@needs_onednn
@pytest.mark.parametrize("terms", [256, 768, 2048])
def test_sums_are_as_exact_as_pytorchs(terms, counted):
    x, weight = random(80, terms), random(300, terms, seed=1)
    exact = x.double() @ weight.double().t()
    with torch.inference_mode():
        mine, theirs = (
            float((found - exact).square().mean().sqrt()) for found in (linear.linear(x, weight), nn.functional.linear(x, weight))
        )
    assert len(counted) == terms // 256
    assert mine < 1.5 * theirs


@needs_onednn
def test_what_onednn_takes(counted):
    x, weight = random(64, 256), random(700, 256)
    with torch.inference_mode():
        linear.linear(x, weight)
        assert counted == [((64, 256), (700, 256))]
        linear.linear(x[:63], weight)
        linear.linear(x, weight[:20])
        linear.linear(x.bfloat16(), weight.bfloat16())
        linear.linear(x.double(), weight.double())
    assert len(counted) == 1


def test_where_a_derivative_is_wanted_there_is_one(counted):
    layer = nn.Linear(256, 700)
    use_fast_linear(layer)
    layer(random(64, 256)).sum().backward()
    assert type(layer) is FastLinear and counted == []
    torch.testing.assert_close(layer.weight.grad, random(64, 256).sum(0).expand(700, 256))


@pytest.mark.parametrize("content", [None, "vendor_id : GenuineIntel\n"])
def test_other_processors_keep_what_pytorch_takes(content, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(linear, "_CPU", tmp_path / "cpuinfo")
    assert linear.has_onednn.__wrapped__() is False


def test_an_operator_that_is_absent_or_wrong_is_not_taken(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("vendor_id : AuthenticAMD\n")
    monkeypatch.setattr(linear, "_CPU", tmp_path / "cpuinfo")
    for broken in (lambda *_: (_ for _ in ()).throw(AttributeError("no such operator")), lambda x, weight, bias: x @ weight.t()):
        monkeypatch.setattr(linear, "_onednn", broken)
        assert linear.has_onednn.__wrapped__() is False


def gpt2(folder, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=256, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_gives_the_log_probabilities_of_the_plain_one(kind, make_model, model_folder, tmp_path, counted):
    folder = make_model(**WIDE) if kind == "llama" else gpt2(tmp_path / "gpt2", model_folder)
    generator = np.random.default_rng(2)
    contexts = [tuple(generator.integers(3, 300, size).tolist()) for size in generator.integers(20, 120, 8)]
    requests = [Continuation(context, tuple(generator.integers(3, 300, size).tolist())) for context in contexts for size in (1, 4, 30)]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with open_engine(folder, Settings()) as engine:
        model = engine.model.model
        layer = model.model.layers[0].self_attn.q_proj if kind == "llama" else model.transformer.h[0].attn.c_attn
        assert type(layer) is (FastLinear if kind == "llama" else FastConv1D)
        assert {name: tuple(one.shape) for name, one in model.state_dict().items()} == {
            name: tuple(one.shape) for name, one in plain.state_dict().items()
        }
        scored = engine.score(requests)
        assert bool(counted) == linear.has_onednn()
        ((written,),) = engine.generate([Prompt("def f(x):", "a")], Decoding(8))
    with torch.inference_mode():
        for one, found in zip(requests, scored, strict=True):
            logits = plain(torch.tensor([(*one.context, *one.tail)])).logits[0].double()
            expected = torch.log_softmax(logits, -1)[len(one.context) - 1 : -1].gather(1, torch.tensor(one.tail)[:, None])[:, 0]
            np.testing.assert_allclose(found.token_log_probabilities, expected.numpy(), atol=1e-5, rtol=0)
    assert written.tokens > 0


def test_processes_give_the_same_bits(make_model):
    folder = make_model(**WIDE)
    generator = np.random.default_rng(4)
    requests = [Continuation(tuple(generator.integers(3, 300, size).tolist()), (5, 6)) for size in generator.integers(20, 200, 24)]
    found = []
    for processes in (1, 2):
        with open_engine(folder, Settings(processes=processes)) as engine:
            found.append([one.token_log_probabilities.tobytes() for one in engine.score(requests)])
    assert found[0] == found[1]
