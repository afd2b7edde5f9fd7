"""Assignment of samples to ranks, what nodes read, configs of reading: nothing here needs a store."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from megatron_codemix.batches import Loader
from megatron_codemix.config import CacheConfig, RunConfig, Url, dump_yaml, load_config, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan, compile_plan
from megatron_codemix.shards import Manifest, ShardCache, SplitReader, SplitWriter, most_of_shards, open_split
from megatron_codemix.shards import cache as cache_module
from megatron_codemix.shards.places import StorePlace
from megatron_codemix.shards.stores import Store
from megatron_codemix.train.reading import nodes_of, reading_lines
from megatron_codemix.train.splits import require_room

END, LENGTH, STEPS, BATCH = 3, 16, 20, 24


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(("code", "text")):
        settings = {"source": name, "split": "train", "modality": name, "token_dtype": "uint16", "tokenizer_fingerprint": "0" * 64}
        sizes = {"vocab_size": 99, "end_of_text_id": END, "pack_tokens": 500, "shard_tokens": 900, "prep": {}}
        rng = np.random.default_rng(seed)
        with SplitWriter(root / name / "train", **settings, **sizes) as writer:
            for number in range(700):
                ids = rng.integers(5, 99, rng.integers(2, 30)).astype(np.uint16)
                ids[-1] = END
                writer.add(ids, num_bytes=len(ids), document_id=number)
    return root


def run(root: object, **data: object) -> RunConfig:
    stage = {"name": "a", "tokens": STEPS * BATCH * LENGTH, "mixture": {"code": 0.5, "text": 0.5}, "batch_size": BATCH}
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    raw = {"name": "r", "output": "o", "tokenizer": "t", "model": shape, "data": data, "micro_batch_size": 2}
    raw["sources"] = {name: {"path": f"{root}/{name}"} for name in ("code", "text")}
    raw["stages"] = [{**stage, "sequence_length": LENGTH, "learning_rate": {"shape": "constant", "peak": 0.001}}]
    return parse_config(raw, RunConfig, "test")


def opened(config: RunConfig) -> tuple[Plan, dict[str, SplitReader]]:
    cache = ShardCache(config.data.cache) if config.data.cache else None
    readers = {name: open_split(source.path / "train", cache) for name, source in config.sources.items()}
    prints = {name: reader.manifest.fingerprint for name, reader in readers.items()}
    sizes = {name: reader.num_windows for name, reader in readers.items()}
    return compile_plan(config, sizes, prints, {name: reader.shard_windows for name, reader in readers.items()}), readers


def loader(config: RunConfig, rank: int = 0, size: int = 1) -> Loader:
    plan, readers = opened(config)
    return Loader(plan, readers, token_num_bytes=np.ones(99, int), micro_batch_size=2, dp_rank=rank, dp_size=size, data=config.data)


def rows(batches: list) -> list[tuple]:
    return [
        (int(batch.source_ids[row]), int(batch.window_ids[row]), *batch.tokens[row].tolist())
        for batch in batches
        for row in range(len(batch.tokens))
    ]


@pytest.mark.parametrize("order", ["global", "blocks"])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_ranks_by_shard_take_the_same_set_of_samples_and_few_shards(root, order, size) -> None:
    whole = loader(run(root, order=order, block_shards=2))
    by_shard = run(root, order=order, block_shards=2, assignment="shard")
    ranks = [loader(by_shard, rank, size) for rank in range(size)]
    for step in (3, 0, 19, 7):
        parts = [rows(rank.batches(step)) for rank in ranks]
        assert sorted(row for part in parts for row in part) == sorted(rows(whole.batches(step)))
        assert {len(part) for part in parts} == {BATCH // size}
        plan, readers = whole.plan, whole.readers
        places = []
        for part in parts:
            found = [(source, int(readers[plan.sources[source]].shards_of(np.array([window]), LENGTH)[0])) for source, window, *_ in part]
            assert found == sorted(found)
            places += found
        assert places == sorted(places), "ranks are neighbours in the order of shards"
    for one in (whole, *ranks):
        one.close()


def test_the_default_order_and_assignment_start_no_threads_and_read_as_ever(root) -> None:
    plain = loader(run(root))
    assert plain._ahead is None
    samples = plain.plan.samples(0)
    assert [row[:2] for row in rows(plain.batches(0))] == list(zip(samples.source.tolist(), samples.window.tolist(), strict=True))


def test_file_urls_are_read_through_the_cache(root, tmp_path) -> None:
    cache = {"folder": str(tmp_path / "cache"), "bytes": 10_000_000}
    near, plain = loader(run(f"file://{root}", cache=cache)), loader(run(root))
    for step in range(STEPS):
        assert rows(near.batches(step)) == rows(plain.batches(step))
    near.close()
    assert list((tmp_path / "cache" / "shards").glob("*.tar"))


def test_a_cache_that_cannot_hold_what_is_read_at_a_time_is_refused(root, tmp_path) -> None:
    for data, remedy in (({"order": "blocks", "block_shards": 2}, "lower data.block_shards"), ({}, "set data.order to 'blocks'")):
        config = run(f"file://{root}", cache={"folder": str(tmp_path), "bytes": 5000}, **data)
        _, readers = opened(config)
        with pytest.raises(UserError, match=r"data.cache.bytes: 5,000 are too few: .*" + remedy):
            require_room(config, readers, {})
    config = run(f"file://{root}", cache={"folder": str(tmp_path), "bytes": 10_000_000})
    require_room(config, opened(config)[1], {})


def test_check_counts_what_nodes_read(root) -> None:
    class Inputs:
        plan, readers = opened(run(root, order="blocks", block_shards=4))

    total = sum(entry.size for reader in Inputs.readers.values() for entry in reader.manifest.shards)
    in_turn = reading_lines(run(root, order="blocks", block_shards=4), Inputs, 1)  # type: ignore[arg-type]
    assert "order blocks: windows of 4 shards at a time; assignment order: ranks take samples in turn" in in_turn[0]
    assert f"each of 1 node(s) reads up to {STEPS * BATCH * (LENGTH + 1) * 2 / 1024:.4g} KiB of windows in the run" in in_turn[1], (
        in_turn,
        total,
    )


def test_nodes_hold_neighbouring_data_ranks() -> None:
    config = run("x")
    assert nodes_of(config, 1) == [(0,)]
    assert nodes_of(config, 16) == [tuple(range(8)), tuple(range(8, 16))]
    assert nodes_of(config.model_copy(update={"parallel": config.parallel.model_copy(update={"tensor": 4})}), 4) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("http://host/x", "no store that shards are read from"),
        ("file://relative/x", "not an address of a folder"),
        ("s3:///x", "not an address of a folder"),
        ("s3://bucket/x?version=1", "not an address of a folder"),
        ("s3://bucket", "data.cache.folder and data.cache.bytes"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused(path, words) -> None:
    with pytest.raises(UserError, match=words):
        run(path)


def test_an_address_survives_the_resolved_config(tmp_path) -> None:
    config = run("s3://bucket/corpus", cache={"folder": "c", "bytes": 1000})
    assert config.sources["code"].path == Url("s3://bucket/corpus/code")
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "run.yaml", RunConfig) == config
    assert str(config.sources["code"].path / "train") == "s3://bucket/corpus/code/train"


def test_a_cache_folder_that_cannot_be_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache\.folder"):
        ShardCache(CacheConfig(folder=tmp_path / "file" / "cache", bytes=1))


@pytest.mark.parametrize("begun_anew", [False, True])
def test_a_fetch_that_is_given_up_while_another_waits_for_it_is_not_taken_over(root, tmp_path, monkeypatch, begun_anew) -> None:
    """Between the opening of a .part and the lock on it, its writer fails and deletes it; a third process may have begun anew."""
    cache = ShardCache(CacheConfig(folder=tmp_path, bytes=10_000_000))
    store, entry = Store(Url(f"file://{root}/code/train")), SplitReader(root / "code" / "train").manifest.shards[0]
    part = tmp_path / "shards" / f"{entry.sha256}.part"
    locked = cache_module._locked

    def after_it_was_given_up(descriptor: int) -> bool:
        part.unlink()
        if begun_anew:
            part.write_bytes(bytes(entry.size))
        return locked(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "_locked", after_it_was_given_up)
        assert not cache.bring(entry, store)
    assert not part.with_suffix(".tar").exists()
    assert part.exists() == begun_anew
    assert cache.bring(entry, store)
    assert Path(cache.take(entry, store).path).read_bytes() == (root / "code" / "train" / entry.name).read_bytes()


def test_shards_that_later_epochs_read_again_make_room_between(root, tmp_path, monkeypatch) -> None:
    """Sources read several times through a cache of two blocks each: nothing is held from one epoch to the next."""
    raw = run(f"file://{root}", order="blocks", block_shards=2, cache={"folder": str(tmp_path), "bytes": 1}).model_dump(mode="json")
    for source in raw["sources"].values():
        source["max_epochs"] = 10
    raw["stages"][0]["tokens"] *= 6
    raw["data"]["cache"]["bytes"] = sum(most_of_shards(Manifest.load(root / name / "train"), 4) for name in ("code", "text"))
    config = parse_config(raw, RunConfig, "test")
    full: list[int] = []
    monkeypatch.setattr(StorePlace, "_give_way", lambda self: full.append(1))
    near, plain = loader(config), opened(config)[0]
    assert min(plain.epochs().values()) > 2
    for step in range(plain.num_steps):
        assert len(rows(near.batches(step))) == BATCH
        time.sleep(0.02)
    near.close()
    assert not full, "no step found the cache full of what it had passed"
