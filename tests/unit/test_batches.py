"""Batches from real shards: the same samples for every layout, and fields that say what the shards say."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_codemix.batches import Batch, Loader, WindowSpace, describe_batches, number_documents, validation_batches
from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Ledger, compile_plan
from megatron_codemix.shards import Kind, SplitReader, SplitWriter

VOCABULARY, END = 50, 3
NUM_BYTES = np.where(np.arange(VOCABULARY) < 5, 0, np.arange(VOCABULARY) % 4 + 1)


def write_split(folder: Path, *, tokens: int, seed: int, modality="text", segments=False, fingerprint="0" * 64) -> SplitReader:
    """Random documents, in several packs and shards."""
    rng = np.random.default_rng(seed)
    settings = {"source": folder.parent.name, "split": folder.name, "modality": modality, "token_dtype": "uint16"}
    numbers = {"vocab_size": VOCABULARY, "end_of_text_id": END, "pack_tokens": 300, "shard_tokens": 1000}
    with SplitWriter(folder, **settings, **numbers, tokenizer_fingerprint=fingerprint, prep={}) as writer:
        written = number = 0
        while written < tokens:
            ids = rng.integers(5, VOCABULARY, rng.integers(1, 40)).astype(np.uint16)
            ids[-1] = END
            parts = [(0, Kind.TEXT), (len(ids) // 2, Kind.CODE)] if segments and len(ids) > 3 else None
            writer.add(ids, num_bytes=int(NUM_BYTES[ids].sum()), document_id=number, segments=parts)
            written, number = written + len(ids), number + 1
    return SplitReader(folder)


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, SplitReader]:
    root = tmp_path_factory.mktemp("shards")
    return {
        "code": write_split(root / "code" / "train", tokens=5000, seed=0, modality="code"),
        "mixed": write_split(root / "mixed" / "train", tokens=4000, seed=1, segments=True),
        "text": write_split(root / "text" / "train", tokens=6000, seed=2),
    }


def make_plan(readers, lengths=(16, 24), batch_size=12, micro=1):
    rate = {"shape": "constant", "peak": 0.001}
    mixture = {"code": 0.25, "mixed": 0.25, "text": 0.5}
    stages = [
        {
            "name": f"s{n}",
            "tokens": 40 * batch_size * n,
            "mixture": mixture,
            "batch_size": batch_size,
            "sequence_length": n,
            "learning_rate": rate,
        }
        for n in lengths
    ]
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    sources = {name: {"path": "x", "max_epochs": 100} for name in readers}
    raw = {"name": "r", "output": "o", "tokenizer": "t", "sources": sources, "model": shape, "stages": stages, "micro_batch_size": micro}
    config = parse_config(raw, RunConfig, "test")
    windows = {name: reader.num_windows for name, reader in readers.items()}
    return compile_plan(config, windows, {name: reader.manifest.fingerprint for name, reader in readers.items()})


def make_loader(plan, readers, **layout) -> Loader:
    return Loader(plan, readers, token_num_bytes=NUM_BYTES, **{"micro_batch_size": 4, **layout})


def rows_of(batch: Batch):
    """Each window of a batch as a hashable value, in order."""
    columns = (batch.source_ids, batch.window_ids, batch.epochs)
    names = zip(*(column.tolist() for column in columns), strict=True)
    return [
        (*name, tuple(tokens), tuple(labels))
        for name, tokens, labels in zip(names, batch.tokens.tolist(), batch.labels.tolist(), strict=True)
    ]


def test_fields_and_dtypes(readers):
    plan = make_plan(readers)
    for step in (0, plan.num_steps - 1):
        (batch, *_) = make_loader(plan, readers).batches(step)
        length = plan.stage_at(step).sequence_length
        assert batch.target_mask.dtype == torch.uint8
        for name in ("tokens", "labels", "positions", "document_ids"):
            assert getattr(batch, name).shape == batch.target_mask.shape == (4, length)
            assert getattr(batch, name).dtype == torch.int64
        assert all(field.is_contiguous() for field in (batch.tokens, batch.labels, batch.document_ids, batch.modality))
        assert (batch.loss_weights.dtype, batch.modality.dtype) == (torch.float32, torch.uint8)
        assert torch.equal(batch.labels[:, :-1], batch.tokens[:, 1:])
        assert batch.num_targets == 4 * length
        assert torch.equal(batch.positions, torch.arange(length).expand(4, length))
        for name in ("source_ids", "window_ids", "epochs", "num_padding", "target_bytes"):
            assert getattr(batch, name).shape == (4,)
            assert getattr(batch, name).dtype == torch.int64
        assert torch.equal(batch.target_bytes, torch.from_numpy(NUM_BYTES)[batch.labels].sum(1))
        moved = batch.to("cpu")
        assert torch.equal(moved.tokens, batch.tokens)


def test_every_window_is_the_plans_and_its_tokens_are_the_shards(readers):
    plan = make_plan(readers)
    loader = make_loader(plan, readers)
    for step in range(plan.num_steps):
        samples, length = plan.samples(step), plan.stage_at(step).sequence_length
        rows = [row for batch in loader.batches(step) for row in rows_of(batch)]
        assert [row[:3] for row in rows] == list(zip(samples.source.tolist(), samples.window.tolist(), samples.epoch.tolist(), strict=True))
        for source, window, _, tokens, labels in rows:
            expected = readers[plan.sources[source]].read_windows(np.array([window]), length)[0].tolist()
            assert [*tokens, labels[-1]] == expected


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 12), (1, 1), (2, 3), (3, 4), (4, 1), (12, 1)])
def test_the_same_samples_for_every_layout(readers, dp_size, micro):
    plan = make_plan(readers)
    whole, ranks = (
        make_loader(plan, readers, micro_batch_size=12),
        [make_loader(plan, readers, micro_batch_size=micro, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)],
    )
    ledgers = [Ledger(plan.sources) for _ in range(dp_size + 1)]
    for step in (0, 1, 39, 40, 79):
        (batch,) = whole.batches(step)
        shared = [rank.batches(step) for rank in ranks]
        assert all(len(batches) == 12 // (dp_size * micro) for batches in shared)
        in_order = [row for number in range(len(shared[0])) for batches in shared for row in rows_of(batches[number])]
        assert in_order == rows_of(batch), "micro-batch by micro-batch over the ranks, in the plan's order"
        for ledger, batches in zip(ledgers, [[batch], *shared], strict=True):
            ledger.count(batches)
    first, *others = ledgers
    merged = Ledger(plan.sources)
    for ledger in others:
        merged.merge(ledger)
    assert merged.as_json() == first.as_json()


def test_a_step_is_the_same_whenever_it_is_asked_for(readers):
    plan = make_plan(readers)
    forward = make_loader(plan, readers)
    in_order = [[rows_of(batch) for batch in forward.batches(step)] for step in range(plan.num_steps)]
    other = make_loader(plan, readers)
    for step in (57, 3, 3, 4, 40, 39, 79, 0):
        assert [rows_of(batch) for batch in other.batches(step)] == in_order[step]


def test_no_two_batches_share_memory(readers):
    loader = make_loader(make_plan(readers), readers)
    (first, neighbour, *_), (again, *_), (later, *_) = loader.batches(0), loader.batches(0), loader.batches(1)
    for field in fields(Batch):
        before = [getattr(batch, field.name).clone() for batch in (neighbour, again, later)]
        if field.name != "positions":  # one row, expanded: torch refuses to write to all of it
            getattr(first, field.name)[...] = 99
        for batch, value in zip((neighbour, again, later), before, strict=True):
            assert torch.equal(getattr(batch, field.name), value), field.name


def test_document_ids_equal_the_documents_array(readers):
    """A document opens with the end-of-text before its first token; the shards' own starts are the witness."""
    plan = make_plan(readers)
    loader = make_loader(plan, readers)
    opened = 0
    for step in range(0, plan.num_steps, 7):
        for batch in loader.batches(step):
            length = batch.tokens.shape[1]
            for row, (source, window) in enumerate(zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True)):
                starts = readers[plan.sources[source]].document_starts(window, length)
                opening = np.array([start - 1 for start in starts if 1 < start <= length], int)
                expected = np.zeros(length, int)
                expected[opening] = 1
                assert batch.document_ids[row].tolist() == np.cumsum(expected).tolist()
                opened += len(opening)
    assert opened > 100


def test_document_ids_by_hand():
    tokens = np.array([[9, 3, 8, 8, 3, 3, 7], [3, 9, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9, 3]])
    found = np.empty_like(tokens)
    number_documents(tokens, END, found)
    assert found.tolist() == [[0, 1, 1, 1, 2, 3, 3], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]]


def test_loss_of_a_document_is_that_of_end_of_text_and_the_document_alone(readers):
    """With attention inside documents, the contexts from which a document's tokens are predicted are its own."""
    plan = make_plan(readers, lengths=(64,))
    for batch in make_loader(plan, readers).batches(0):
        for tokens, labels, ids in zip(batch.tokens.tolist(), batch.labels.tolist(), batch.document_ids.tolist(), strict=True):
            for document in range(1, max(ids)):  # whole ones: opened and closed in this window
                inside = [position for position, number in enumerate(ids) if number == document]
                assert tokens[inside[0]] == END
                text = [tokens[position] for position in inside[1:]]
                assert END not in text
                assert [labels[position] for position in inside] == [*text, END], "every token is a target once, and so is its end"


def test_modality_comes_from_segments(readers):
    plan = make_plan(readers)
    seen = set()
    for batch in make_loader(plan, readers).batches(0):
        for row, source in enumerate(batch.source_ids.tolist()):
            reader = readers[plan.sources[source]]
            expected = np.empty(17, int)
            for start, kind in reader.segments(int(batch.window_ids[row]), 16):
                expected[start:] = kind
            assert batch.modality[row].tolist() == expected[:16].tolist()
            seen |= {(plan.sources[source], kind) for kind in batch.modality[row].tolist()}
    assert {("code", 1), ("text", 0), ("mixed", 0), ("mixed", 1)} == seen


@pytest.mark.parametrize(("dp_size", "micro", "max_windows"), [(1, 4, None), (1, 1, 10), (2, 3, 17), (3, 5, 1)])
def test_validation_reads_windows_of_the_whole_split_once(readers, dp_size, micro, max_windows):
    reader = readers["text"]
    total = reader.num_windows(16)
    number = min(total, max_windows or 10**9)
    wanted = [index * total // number for index in range(number)]
    seen, num_bytes, targets = [], 0, 0
    for rank in range(dp_size):
        layout = {"micro_batch_size": micro, "dp_rank": rank, "dp_size": dp_size, "max_windows": max_windows}
        for batch in validation_batches(reader, source_index=2, sequence_length=16, token_num_bytes=NUM_BYTES, **layout):
            assert batch.tokens.shape == (micro, 16), "one shape, the last one included"
            counted = batch.target_mask.bool().any(1)
            seen += batch.window_ids[counted].tolist()
            targets += batch.num_targets
            num_bytes += int(batch.target_bytes.sum())
            assert torch.equal(batch.num_padding + batch.target_mask.sum(1), torch.full((micro,), 16))
            assert batch.source_ids.unique().tolist() == [2]
    assert sorted(seen) == wanted, "spread evenly over the split, each once"
    assert targets == 16 * number
    labels = reader.read_windows(np.array(wanted), 16)[:, 1:]
    assert num_bytes == NUM_BYTES[labels].sum()


def test_layouts_that_cannot_work_are_refused(readers, tmp_path):
    plan = make_plan(readers)
    with pytest.raises(UserError, match=r"stages\[0\].batch_size: 12 windows .* 5 data-parallel ranks .* multiple of 5"):
        make_loader(plan, readers, micro_batch_size=1, dp_size=5)
    foreign = write_split(tmp_path / "foreign" / "train", tokens=500, seed=3, fingerprint="1" * 64)
    with pytest.raises(UserError, match=r"sources.text: .* another tokenizer than those of 'code'"):
        make_loader(plan, {**readers, "text": foreign})


def test_window_space(readers):
    space = WindowSpace(readers["mixed"], 16)
    assert space.num_samples == readers["mixed"].num_windows(16)
    tokens, kinds = np.empty((3, 17), np.int64), np.empty((3, 17), np.uint8)
    space.read(np.array([5, 0, 5]), tokens, kinds)
    assert np.array_equal(tokens, readers["mixed"].read_windows(np.array([5, 0, 5]), 16))
    with pytest.raises(IndexError):
        space.read(np.array([space.num_samples]), tokens[:1], kinds[:1])


class Words:
    """Decodes an id as a word."""

    def decode(self, ids):
        return " ".join(f"w{int(i)}" for i in ids)


def test_description_counts_the_batches(readers):
    plan = make_plan(readers)
    loader = make_loader(plan, readers)
    batches = [batch for step in range(20) for batch in loader.batches(step)]
    text = "\n".join(describe_batches(batches, plan.sources, Words(), plan.stages[0].mixture))
    (code_line,) = [line for line in text.splitlines() if line.startswith("code ")]
    assert code_line.split()[1:5] == ["60", "960", "0.2500", "1/4"]
    documents = sum(int((batch.document_ids[:, 1:] != batch.document_ids[:, :-1]).sum()) + len(batch.tokens) for batch in batches)
    assert f"240 windows hold {documents:,} documents or parts of documents" in text
    first = next(tokens for batch in batches for tokens, source in zip(batch.tokens, batch.source_ids, strict=True) if source == 0)
    assert Words().decode(first) in text
    assert "document that opens at token" in text
