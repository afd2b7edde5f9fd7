"""On the published rows: right answers score 100, empty ones 0, and our numbers are those of `lm_eval --model hf`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval.engine import Settings, open_engine
from eval.run import gather
from eval.suites import DataFolder, bigbench_tasks
from eval.tasks.kinds import kind_module

DATA = os.environ.get("CODEMIX_DATA")
BENCHMARKS = Path(DATA or "absent") / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="CODEMIX_DATA does not point to a folder with benchmarks/")

STANDARD = [
    "boolq",
    "piqa",
    "social_iqa",
    "copa",
    "winogrande",
    "arc_easy",
    "triviaqa",
    "nq_open",
    "lambada",
    "gsm8k",
    "gsm8k_cot",
    "gsm8k_direct",
]
ROWS = 40


def tasks(names, limit):
    found = gather([], names, BENCHMARKS, hub=False)
    return {name: task.model_copy(update={"limit": limit}) for name, task in found.items()}


@pytest.mark.parametrize("name", STANDARD)
def test_standard_tasks_know_their_right_answers(name, fake_engine):
    ((name, task),) = tasks([name], ROWS).items()
    task = task.model_copy(update={"max_new_tokens": 2000})  # a character is a token to the fake engine
    measure = kind_module(task.kind).measure
    nothing = measure(fake_engine(), task, name)
    if "exact_match" in nothing.metrics:
        assert nothing.metrics["exact_match"] == 0.0
        said = {item["input"]: item["references"][0] for item in nothing.items}
        if name == "gsm8k_cot":
            said = {prompt: f" So it is. The answer is {text}." for prompt, text in said.items()}
        # an answer with a full stop in it cannot be written under the definitions of triviaqa and nq_open, which stop there
        perfect = measure(fake_engine(write=said.__getitem__, stops=name.startswith("gsm8k")), task, name)
        assert perfect.metrics["exact_match"] == 1.0
        return
    # of every item the whole texts that the right answer makes, as the engine will see them
    right = set()
    for item in nothing.items:
        if "choices" not in item:
            right.add(item["input"] + item["output"])
        elif name == "winogrande":
            right.add(item["choices"][item["gold"]] + item["input"])
        else:
            right.add(f"{item['input']} {item['choices'][item['gold']]}")
    perfect = measure(fake_engine(right=right.__contains__), task, name)
    assert perfect.metrics["accuracy"] == 1.0
    assert all(item["score"] == 1 for item in perfect.items) and len(perfect.items) == min(ROWS, len(nothing.items))


def test_every_bigbench_task_knows_its_right_answers(fake_engine):
    names = bigbench_tasks(DataFolder.open(BENCHMARKS))
    assert len(names) > 25
    for name, task in tasks([f"bigbench:{name}" for name in names], ROWS).items():
        measure = kind_module(task.kind).measure
        nothing = measure(fake_engine(), task, name)
        if "exact_match" in nothing.metrics:
            assert nothing.metrics["exact_match"] == 0.0, name
            said = {item["input"]: item["references"][0] for item in nothing.items}
            perfect = measure(fake_engine(write=said.__getitem__), task, name)
        else:
            right = {item["input"] + item["choices"][at] for item in nothing.items for at in item.get("right", [item["gold"]])}
            perfect = measure(fake_engine(right=right.__contains__), task, name)
        assert perfect.metrics["normalised"] == pytest.approx(100.0), name


@pytest.mark.parametrize("name", ["misconceptions", "conceptual_combinations", "cs_algorithms", "qa_wikidata", "operators"])
def test_rows_of_llm_foundry_are_read(name, fake_engine):
    (folder,) = BENCHMARKS.glob("bigbench/llm_foundry_jsonl")
    for key, task in gather([], [f"bigbench:{name}"], folder, hub=False).items():
        outcome = kind_module(task.kind).measure(fake_engine(), task.model_copy(update={"limit": ROWS}), key)
        assert len(outcome.items) == min(ROWS, len(outcome.items)) > 10


def plain(folder: Path) -> None:
    """The tokenizer of the shared fixture: byte fallback, no BOS of its own."""


def with_bos(folder: Path) -> None:
    """One that puts BOS before every text, as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save_pretrained(folder)


def byte_level(folder: Path) -> None:
    """GPT-2's kind: byte-level BPE, spaces at the beginning of words, end-of-text only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=1024, bos_token_id=0, eos_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("change", [plain, with_bos, byte_level])
def test_our_numbers_are_those_of_lm_eval(change, make_model, monkeypatch):
    monkeypatch.delenv(
        "LOCAL_RANK", raising=False
    )  # left by a test with DeepSpeed; accelerate takes it for a launch
    pytest.importorskip("accelerate", reason="lm_eval's hf backend needs accelerate")
    parity = pytest.importorskip("eval.harness.parity")
    folder = make_model(seed=3, max_position_embeddings=1024)
    change(folder)
    peer, engine = parity.open_peer(folder), open_engine(folder, Settings())
    assert parity.adds_start(peer) == (change is with_bos)
    names = ["boolq", "piqa", "social_iqa", "copa", "winogrande", "arc_easy", "lambada"]
    for name, task in tasks(names, 4).items():
        found = parity.compare(peer, engine, task, name)
        assert found.worst_per_token <= 1e-5, (name, found)
        assert found.different <= found.ties, (name, found)
        assert found.requests >= found.items == 4
        for theirs, ours in found.metrics.values():
            assert ours == pytest.approx(theirs, rel=1e-4) or found.ties, (name, found)
    for name, task in tasks(["nq_open", "gsm8k_direct"], 2).items():
        found = parity.compare(peer, engine, task.model_copy(update={"max_new_tokens": 4}), name)
        assert all(theirs == ours for theirs, ours in found.metrics.values()), (name, found)
        assert found.different == 0, (name, found)
