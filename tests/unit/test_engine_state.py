"""Saving and loading: bit-identical continuation, and refusal of what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine, load_model, state
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import KINDS, PARAM, Piece, PieceReader, write_neutral, write_pieces

VOCAB, LENGTH = 100, 16


@dataclasses.dataclass(frozen=True)
class TinyBatch:
    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None


def batches(step: int) -> list[TinyBatch]:
    generator = torch.Generator().manual_seed(step)
    made = []
    for _ in range(2):
        tokens = torch.randint(0, VOCAB, (2, LENGTH + 1), generator=generator)
        ones = torch.ones(2, LENGTH)
        ids = (torch.rand(2, LENGTH, generator=generator) < 0.2).long().cumsum(1)
        made.append(TinyBatch(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, torch.arange(LENGTH).expand(2, -1), ids))
    return made


def run_config(**changes) -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64}
    model |= changes.pop("model", {})
    stage = {
        "name": "only", "tokens": 6400, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": "fp32",
        "model": model, "stages": [stage],
    }  # fmt: skip
    return parse_config(raw | changes, RunConfig, "test")


@pytest.fixture(scope="module")
def topology():
    with Topology.join(ParallelConfig()) as joined:
        yield joined


@pytest.fixture
def engine(topology):
    return lambda vocab_size=VOCAB, **changes: MegatronEngine(run_config(**changes), vocab_size, topology)


def rate(step: int) -> float:
    return 1e-3 * (step + 1)


def train(trained: MegatronEngine, steps: range) -> list:
    return [trained.train_step(batches(step), rate(step)) for step in steps]


def everything(trained: MegatronEngine) -> dict[str, Tensor]:
    """Weights, master weights, moments and step counts, cloned."""
    found = {name: parameter.detach().clone() for name, parameter in trained.model.named_parameters()}
    for piece in trained.pieces():
        found[f"{piece.block.key} {piece.kind} {piece.block.offset}"] = piece.data.clone()
    found |= {f"step {number}": held["step"].clone() for number, held in enumerate(states(trained))}
    return found


def states(trained: MegatronEngine) -> list[dict]:
    """What AdamW holds, parameter by parameter."""
    chained = trained._optimizer.chained_optimizers  # pyright: ignore[reportAttributeAccessIssue]
    return [held for each in chained for held in each.optimizer.state.values()]


def assert_same(ours: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        assert value.dtype == others[name].dtype, name
        assert torch.equal(value, others[name]), name


def saved(trained: MegatronEngine, folder: Path, kinds: tuple[str, ...] = KINDS) -> PieceReader:
    folder.mkdir()
    write_pieces(folder / "rank-00000-of-00001.safetensors", [piece for piece in trained.pieces() if piece.kind in kinds], trained.step)
    return PieceReader(folder)


def neutral(reader: PieceReader, folder: Path) -> PieceReader:
    folder.mkdir()
    write_neutral(reader, folder)
    return PieceReader(folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True], ids=["", "distributed"])
@pytest.mark.parametrize("form", ["routine", "neutral"])
def test_resume_is_bit_identical(engine, tmp_path, precision, distributed, form):
    # with dropout, whose generators are keyed by the step
    model = {"tied_embeddings": distributed, "hidden_dropout": 0.1, "attention_dropout": 0.1}
    changes = {"precision": precision, "model": model, "parallel": {"distributed_optimizer": distributed}}
    uninterrupted = engine(**changes)
    results = train(uninterrupted, range(8))

    interrupted = engine(**changes)
    train(interrupted, range(4))
    reader = saved(interrupted, tmp_path / "weights")
    if form == "neutral":
        reader = neutral(reader, tmp_path / "neutral")
    resumed = engine(**changes, seeds={"init": 5})  # other initial weights: all must come from the checkpoint
    resumed.load_pieces(reader)
    assert resumed.step == 4
    assert_same(everything(resumed), everything(interrupted))
    counts = [held["step"] for held in states(resumed)]
    assert {float(count) for count in counts} == {4.0}
    assert len({count.data_ptr() for count in counts}) == len(counts), "one count for two parameters would count twice"

    assert train(resumed, range(4, 8)) == results[4:]
    assert_same(everything(resumed), everything(uninterrupted))
    assert train(interrupted, range(4, 8)) == results[4:], "saving disturbs nothing"
    assert_same(everything(interrupted), everything(uninterrupted))


def test_resume_into_an_engine_that_has_trained(engine, tmp_path):
    first, second = engine(), engine(seeds={"init": 1})
    train(first, range(3))
    reader = saved(first, tmp_path / "weights")
    train(second, range(10, 15))
    second.load_pieces(reader)
    assert train(second, range(3, 6)) == train(first, range(3, 6))
    assert_same(everything(second), everything(first))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpoint_of_step_zero(engine, tmp_path, precision):
    fresh, loaded = engine(precision=precision), engine(precision=precision, seeds={"init": 3})
    loaded.load_pieces(saved(fresh, tmp_path / "weights"))
    assert loaded.step == 0
    assert train(loaded, range(2)) == train(fresh, range(2))
    assert_same(everything(loaded), everything(fresh))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kinds", [KINDS, (PARAM,)], ids=["whole state", "weights alone"])
def test_weights_alone(engine, tmp_path, precision, kinds):
    trained, other = engine(precision=precision), engine(precision=precision, seeds={"init": 1})
    train(trained, range(2))
    reader = saved(trained, tmp_path / "weights", kinds)
    before = everything(other)
    other.load_pieces(reader, optimizer=False)
    assert other.step == 0
    there = everything(trained)
    for name, value in everything(other).items():
        moment = " exp_avg" in name or name.startswith("step")
        assert torch.equal(value, before[name] if moment else there[name]), name
    tokens = batches(0)[0].tokens
    assert torch.equal(other.log_probabilities(tokens), trained.log_probabilities(tokens))
    if kinds != KINDS:
        with pytest.raises(UserError, match="holds weights alone"):
            other.load_pieces(reader)


def test_every_precision_has_what_the_other_saves(engine, tmp_path):
    """bf16 weights are their fp32 master weights, rounded; so one file serves both."""
    rounded, exact = engine(precision="bf16"), engine(seeds={"init": 1})
    train(rounded, range(3))
    exact.load_pieces(saved(rounded, tmp_path / "first"))
    there = everything(exact)
    assert_same(
        {name: value.float() for name, value in everything(rounded).items() if " " in name}, {n: there[n] for n in there if " " in n}
    )
    for (name, weight), master in zip(rounded.model.named_parameters(), exact.model.parameters(), strict=True):
        assert torch.equal(weight, master.bfloat16()), name
    again = engine(precision="bf16", seeds={"init": 1})
    again.load_pieces(saved(exact, tmp_path / "second"))
    assert_same(everything(again), everything(rounded))


def test_the_pieces_are_views(engine):
    trained = engine()
    before = [(piece.data.data_ptr(), piece.data.clone()) for piece in trained.pieces()]
    train(trained, range(1))
    after = trained.pieces()
    assert [pointer for pointer, _ in before] == [piece.data.data_ptr() for piece in after]
    assert not all(torch.equal(old, piece.data) for (_, old), piece in zip(before, after))
    assert all(isinstance(piece, Piece) and not piece.data.requires_grad for piece in after)


def test_the_config_wins_over_the_checkpoint(engine, tmp_path):
    trained = engine()
    train(trained, range(2))
    other = engine(optimizer={"weight_decay": 0.03, "beta2": 0.9, "epsilon": 1e-5})
    other.load_pieces(saved(trained, tmp_path / "weights"))
    groups = {
        (group["wd_mult"], group["weight_decay"], group["betas"], group["eps"], group["fused"]) for group in other._optimizer.param_groups
    }
    assert groups == {(1.0, 0.03, (0.9, 0.9), 1e-5, True), (0.0, 0.0, (0.9, 0.9), 1e-5, True)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 200}, r"embedding\.word_embeddings\.weight' of 128 × 32 where this run has 256 × 32"),
        (
            {"vocab_size": 20, "model": {"vocab_multiple": 32}},
            r"embedding\.word_embeddings\.weight' of 128 × 32 where this run has 32 × 32",
        ),
        ({"model": {"hidden_size": 64}}, r"128 × 32 where this run has 128 × 64"),
        ({"model": {"num_layers": 3}}, r"has no 'decoder\.layers\.2\."),
        ({"model": {"num_layers": 1}}, r"has 'decoder\.layers\.1\..*', which this run has not"),
        ({"model": {"ffn_hidden_size": 96}}, r"linear_fc1"),
        ({"model": {"num_query_groups": 4}}, r"linear_qkv"),
        ({"model": {"tied_embeddings": True}}, r"output_layer"),
    ],
)
@pytest.mark.parametrize("optimizer", [False, True])
def test_a_checkpoint_of_another_model_is_refused(engine, tmp_path, changes, said, optimizer):
    reader = saved(engine(), tmp_path / "weights")
    other = engine(**changes)
    before = everything(other)
    with pytest.raises(UserError, match=said) as refused:
        other.load_pieces(reader, optimizer=optimizer)
    assert "another model" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert_same(everything(other), before)


def test_a_tied_checkpoint_in_an_untied_model_is_refused(engine, tmp_path):
    reader = saved(engine(model={"tied_embeddings": True}), tmp_path / "weights")
    with pytest.raises(UserError, match=r"has no 'output_layer\.weight'"):
        engine().load_pieces(reader, optimizer=False)


def test_names_are_those_of_the_model(engine, tmp_path):
    """What converters and people read: the parameters of megatron-core's GPTModel, each layer for itself."""
    trained = engine()
    shapes = saved(trained, tmp_path / "weights").keys()
    assert shapes == {name: tuple(parameter.shape) for name, parameter in trained.model.named_parameters()}


def test_the_model_alone_needs_no_moments(topology, engine, tmp_path):
    trained = engine(precision="bf16")
    train(trained, range(1))
    reader = saved(trained, tmp_path / "weights", (PARAM,))
    model = load_model(run_config(precision="bf16", seeds={"init": 4}), VOCAB, topology, reader.folder)
    for (name, mine), theirs in zip(trained.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs) and not theirs.requires_grad, name
    with pytest.raises(UserError, match="another model"):
        load_model(run_config(model={"hidden_size": 64}), VOCAB, topology, reader.folder)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("elements", [1, 7, state._LEAST_SHARE, state._LEAST_SHARE + 1, 10 * state._LEAST_SHARE + 3])
def test_replicas_share_the_writing(elements, ranks):
    for number in (0, 1, 5):
        shares = [state._share(elements, rank - number, ranks) for rank in range(ranks)]
        written = sorted(share for share in shares if share[0] < share[1])
        assert [start for start, _ in written] == [0, *(stop for _, stop in written[:-1])] and written[-1][1] == elements
        sizes = [stop - start for start, stop in written]
        assert len(sizes) <= ranks and max(sizes) - min(sizes) <= 1
        assert len(sizes) == 1 or min(sizes) >= state._LEAST_SHARE // 2
        assert all(start <= stop for start, stop in shares)
    firsts = {tuple(state._share(1, rank - number, 4) == (0, 1) for rank in range(4)) for number in range(4)}
    assert len(firsts) == 4, "small blocks go to one rank after the other"
