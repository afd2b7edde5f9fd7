"""Objectives from the config to batches and ledger: the same for every layout, counted right, refused where they cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from megatron_codemix.batches import Batch, Loader, validation_batches
from megatron_codemix.config import Objective, RunConfig, dump_yaml, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Ledger, Lineage, Plan, disagreement, plan_table
from megatron_codemix.mixture.reconcile import expect, reconcile
from megatron_codemix.shards import SplitReader
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer
from megatron_codemix.train.decode import batch_lines
from megatron_codemix.train.inputs import open_inputs

TEXTS = [
    "def add(left, right):\n    return left + right\n" * 3,
    "Some prose about añadir and 東京, as long as a line may be.\n",
    "for name in names:\n    print(name)\n" * 2,
]
OBJECTIVE: dict[str, Any] = {
    "fim": {"rate": {"code": 0.6}},
    "prefix": {"rate": 0.4},
    "corruption": {"rate": 0.1, "mean_span": 2},
    "loss_weights": {"text": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_split) -> Path:
    root = tmp_path_factory.mktemp("objectives")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.model").write_bytes(train_tokenizer(TEXTS * 40, 460))
    tokenizer = Tokenizer.load(root / "tokenizer")
    write_split(root / "code" / "train", tokenizer, TEXTS * 40)
    write_split(root / "code" / "valid", tokenizer, TEXTS * 3)
    write_split(root / "text" / "train", tokenizer, TEXTS[1:2] * 200, modality="text")
    return root


def run(folder: Path, objective: Any = OBJECTIVE, **fields: Any) -> RunConfig:
    rate = {"shape": "constant", "peak": 0.001}
    stages = [
        {"name": name, "tokens": 4 * 12 * 32, "mixture": {"code": 0.5, "text": 0.5}, "batch_size": 12, "sequence_length": 32}
        | {"learning_rate": rate, "objective": asked}
        for name, asked in (("plain", "clm"), ("changed", objective))
    ]
    sources = {"code": {"path": str(folder / "code")}, "text": {"path": str(folder / "text"), "validation_split": None}}
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    raw = {"name": "r", "output": "o", "tokenizer": str(folder / "tokenizer"), "sources": sources, "model": shape, "stages": stages}
    return parse_config(raw | fields, RunConfig, "test")


def prepared(folder: Path, objective: Any = OBJECTIVE) -> tuple[Plan, dict[str, SplitReader], Tokenizer]:
    inputs = open_inputs(run(folder, objective))
    return inputs.plan, inputs.readers, inputs.tokenizer


def loader(folder: Path, objective: Any = OBJECTIVE, **layout: Any) -> Loader:
    plan, readers, tokenizer = prepared(folder, objective)
    return Loader(plan, readers, token_num_bytes=tokenizer.token_num_bytes, tokenizer=tokenizer, **{"micro_batch_size": 4} | layout)


def content(batch: Batch) -> list[Any]:
    names = [name for name in vars(batch) if name != "positions"]
    return [tuple(getattr(batch, name)[row].tolist() if getattr(batch, name).ndim > 1 else int(getattr(batch, name)[row]) for name in names)
            for row in range(len(batch.tokens))]  # fmt: skip


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 1), (2, 3), (3, 4), (12, 1)])
def test_the_same_windows_for_every_layout_and_order(folder, dp_size, micro):
    whole = loader(folder, micro_batch_size=12)
    ranks = [loader(folder, micro_batch_size=micro, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
    for step in (6, 1, 4, 7, 4):
        (batch,) = whole.batches(step)
        shared = [rank.batches(step) for rank in ranks]
        assert [row for number in range(len(shared[0])) for batches in shared for row in content(batches[number])] == content(batch)


def test_plain_stages_are_as_they_were(folder):
    mixed, plain = loader(folder), loader(folder, "clm")
    for step in range(4):
        for one, other in zip(mixed.batches(step), plain.batches(step), strict=True):
            assert content(one) == content(other)
            assert one.num_targets == one.tokens.numel()
            assert not one.prefix.any()
    assert "objective" not in str(plain.plan.as_json())
    assert mixed.plan.as_json()["stages"][1]["objective"]["fim"]["rate"] == {"code": 0.6}
    assert mixed.plan.fingerprint != plain.plan.fingerprint, "a resumed run may not have another objective behind it"


def test_every_position_is_a_target_padding_or_excluded(folder):
    tokenizer = Tokenizer.load(folder / "tokenizer")
    ours, seen = loader(folder), np.zeros(4, int)
    for step in range(4, 8):
        for batch in ours.batches(step):
            assert torch.equal(batch.target_mask.sum(1) + batch.num_padding + batch.num_excluded, torch.full((4,), 32))
            num_bytes = torch.from_numpy(tokenizer.token_num_bytes)[batch.labels] * batch.target_mask
            assert torch.equal(batch.target_bytes, num_bytes.sum(1))
            seen += [
                batch.num_padding.sum(),
                batch.num_excluded.sum(),
                batch.prefix.sum(),
                (batch.tokens[:, 1:] != batch.labels[:, :-1]).sum(),
            ]
    assert (seen[1:] > 0).all()


def expected_of(plan: Plan) -> dict[str, Any]:
    lineage = Lineage()
    lineage.add_interval(plan.fingerprint, 0, 8)
    return expect(plan, lineage)


def test_ledger_and_audit(folder):
    ours = loader(folder)
    ledger = Ledger(ours.plan.sources)
    for step in range(8):
        ledger.count(ours.batches(step))
    expected = expected_of(ours.plan)
    assert reconcile(expected, ledger) == []
    stored = ledger.as_json()
    assert stored["sources"]["code"]["excluded"] > 0
    assert Ledger.from_json(stored).as_json() == stored
    tampered = {**stored, "sources": {**stored["sources"]}}
    tampered["sources"]["code"] = {**stored["sources"]["code"], "excluded": 0}
    assert "do not make" in reconcile(expected, Ledger.from_json(tampered, sources=ours.plan.sources))[0]
    plain = loader(folder, "clm")
    problems = reconcile(expected_of(plain.plan), ledger)
    assert len(problems) == 2
    assert all("were no targets, but every stage that read it has the objective clm" in line for line in problems)
    unchanged = Ledger(plain.plan.sources)
    for step in range(8):
        unchanged.count(plain.batches(step))
    assert "excluded" not in str(unchanged.as_json()), "ledgers of plain runs are written as they always were"
    assert reconcile(expected_of(plain.plan), unchanged) == []


def test_validation_is_next_token_prediction(folder):
    inputs = open_inputs(run(folder))
    sizes = inputs.tokenizer.token_num_bytes
    for batch in validation_batches(
        inputs.validation["code"], source_index=0, sequence_length=32, micro_batch_size=1, token_num_bytes=sizes
    ):
        assert batch.num_targets == 32
        assert not batch.prefix.any()
        assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])


def test_a_tokenizer_without_the_symbols_is_refused_before_anything_starts(folder, monkeypatch):
    load = Tokenizer.load

    def poorer(path: Path) -> Tokenizer:
        tokenizer = load(path)
        tokenizer.special_ids = {name: number for name, number in tokenizer.special_ids.items() if name not in ("<fim_pad>", "<mask>")}
        return tokenizer

    monkeypatch.setattr(Tokenizer, "load", poorer)
    with pytest.raises(UserError, match=r"stages\[1\]\.objective: the tokenizer .* has no <fim_pad>, <mask>; use one that reserves them"):
        open_inputs(run(folder))
    with pytest.raises(UserError, match=r"has no <nowhere>;"):
        open_inputs(run(folder, {"prefix": {"rate": 1, "until": "<nowhere>"}}))
    assert open_inputs(run(folder, {"prefix": {"rate": 1, "until": "<python>"}})).plan.num_steps == 8


@pytest.mark.parametrize(
    ("objective", "problem"),
    [
        ("cml", "stages[1].objective: 'clm', or a mapping of fim, prefix, corruption and loss_weights (given: 'cml')"),
        ({"fimm": {}}, "stages[1].objective.fimm: unknown key; did you mean 'fim'?"),
        ({"fim": {"rate": {"go": 0.5}}}, "stages[1].objective.fim.rate.go: the stage's mixture has no such source"),
        ({"fim": {"rate": 1.5}}, "stages[1].objective.fim.rate: a share lies between 0 and 1"),
        ({"corruption": {"rate": 1}}, "stages[1].objective.corruption.rate: at 1 no input is left"),
        ({"corruption": {"rate": {"code": "1/1"}}}, "stages[1].objective.corruption.rate: at 1 no input is left"),
        ({"loss_weights": {"prose": 1}}, "stages[1].objective.loss_weights.prose: Input should be 'text', 'code'"),
        ({"loss_weights": dict.fromkeys(("text", "code", "comment", "docstring", "signature", "body"), 0)}, "every kind has weight 0"),
    ],
)  # fmt: skip
def test_mistakes_in_the_config_are_told_by_their_path(folder, objective, problem):
    with pytest.raises(UserError) as told:
        run(folder, objective)
    assert any(problem in line for line in told.value.problems)


def test_prefixes_need_document_masking(folder):
    with pytest.raises(UserError, match=r"objective\.prefix: without document_masking a prefix would be seen by other documents"):
        run(folder, {"prefix": {"rate": 1}}, document_masking=False)
    assert run(folder, {"fim": {"rate": 1}}, document_masking=False).stages[1].objective.fim


def test_the_resolved_config_reads_back(folder):
    config = run(folder)
    stored = yaml.safe_load(dump_yaml(config))
    assert stored["stages"][0]["objective"] == "clm"
    assert stored["stages"][1]["objective"]["fim"] == {"rate": {"code": 0.6}, "spm": 0.5}
    assert parse_config(stored, RunConfig, "stored") == config
    assert config.stages[1].objective.words() == "clm; fim code 0.6 (spm 0.5); prefix 0.4; corruption 0.1; loss weights text 0.5"
    assert Objective().words() == "clm"


def test_check_counts_and_shows_what_an_objective_does(folder):
    inputs = open_inputs(run(folder))
    text = "\n".join(batch_lines(run(folder), inputs, 4, 4))
    ours = loader(folder)
    batches = [batch for step in range(4, 8) for batch in ours.batches(step)]
    assert "objective: clm; fim code 0.6 (spm 0.5); prefix 0.4; corruption 0.1; loss weights text 0.5" in text
    (code,) = [line for line in text.splitlines() if line.startswith("code: ")]
    mine = [(batch, batch.source_ids == 0) for batch in batches]
    replaced = sum(int((batch.tokens[rows][:, 1:] != batch.labels[rows][:, :-1]).sum()) for batch, rows in mine)
    excluded = sum(int(batch.num_excluded[rows].sum()) for batch, rows in mine)
    sentinel = inputs.tokenizer.special_ids["<fim_prefix>"]
    rearranged = sum(int((batch.labels[rows] == sentinel).sum() + (batch.tokens[rows][:, 0] == sentinel).sum()) for batch, rows in mine)
    for part in (f"{rearranged:,} (", f"{replaced:,} (", f"{excluded:,} ("):
        assert part in code
    (told,) = [line for line in plan_table(inputs.plan) if line.startswith("objective")]
    assert told == "objective of stage 'changed': clm; fim code 0.6 (spm 0.5); prefix 0.4; corruption 0.1; loss weights text 0.5"
    assert "are seen by all of their document: " in text
    assert "is read as " in text
    assert "<mask>" in text
    assert "objective" not in "\n".join(batch_lines(run(folder), inputs, 0, 2)), "a plain stage has nothing to show"


def test_a_change_of_what_was_trained_for_is_a_change_of_the_past(folder):
    """`--accept-changes` compares plans: an objective may change ahead of a run, not behind it."""
    plain, mixed = prepared(folder, "clm")[0], prepared(folder)[0]
    assert disagreement(plain, mixed, 0, 4) is None, "the stage that differs begins at step 4"
    assert disagreement(mixed, mixed, 0, 8) is None
    words = disagreement(plain, mixed, 0, 5)
    assert words is not None
    assert words.startswith("step 4 was for the objective 'clm', and would have been for 'clm; fim code 0.6 (spm 0.5); prefix 0.4")


@pytest.mark.parametrize(("rate", "path"), [(2, "rate"), ("half", "rate"), ({"code": 2}, "rate.code"), ({"code": True}, "rate.code")])
def test_a_wrong_rate_is_one_line(folder, rate, path):
    with pytest.raises(UserError) as refused:
        run(folder, {"fim": {"rate": rate}})
    (problem,) = refused.value.problems
    assert f"stages[1].objective.fim.{path}: a share" in problem
