"""`codemix audit`: agrees with what the real loader consumed, and sees one window dropped or repeated."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_codemix import cli
from megatron_codemix.batches import Loader
from megatron_codemix.config import RunConfig, dump_yaml, parse_config
from megatron_codemix.files import sha256_file, write_json, write_text
from megatron_codemix.mixture import Ledger, Lineage, compile_plan
from megatron_codemix.shards import SplitReader, SplitWriter

VOCABULARY, END, LENGTH = 50, 3, 16
NUM_BYTES = np.arange(VOCABULARY) % 5


def write_split(folder: Path, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = {
        "source": folder.parent.name,
        "split": "train",
        "modality": "text",
        "token_dtype": "uint16",
        "tokenizer_fingerprint": "0" * 64,
    }
    numbers = {"vocab_size": VOCABULARY, "end_of_text_id": END, "pack_tokens": 300, "shard_tokens": 2000, "prep": {}}
    with SplitWriter(folder, **settings, **numbers) as writer:
        for number in range(tokens // 20):
            ids = rng.integers(5, VOCABULARY, 20).astype(np.uint16)
            ids[-1] = END
            writer.add(ids, num_bytes=40, document_id=number)


class Dropping(Loader):
    """Loses the last window of one step."""

    def batches(self, step):
        found = super().batches(step)
        return [*found[:-1], found[-1].rows(0, len(found[-1].tokens) - 1)] if step == 7 else found


class Repeating(Loader):
    """Gives the last window of one step twice."""

    def batches(self, step):
        found = super().batches(step)
        return [*found, found[-1].rows(3, 4)] if step == 7 else found


class Exchanging(Loader):
    """Reads the first window of step 3 again where step 7 has its own window of the same source."""

    def batches(self, step):
        found = super().batches(step)
        if step != 7:
            return found
        earlier, mine = super().batches(3), found[0]
        row = int((mine.source_ids == earlier[0].source_ids[0]).nonzero()[0])
        mine.window_ids[row] = earlier[0].window_ids[0]
        return found


class Another(Loader):
    """Takes every window of step 7 from step 8: one step read twice, another never."""

    def batches(self, step):
        return super().batches(8 if step == 7 else step)


@pytest.fixture
def train(tmp_path):
    """A function that plays a run to `end` with a loader class and saves its checkpoint, as the trainer does."""
    for number, name in enumerate(("python", "books")):
        write_split(tmp_path / "shards" / name / "train", 4000 + 1000 * number, number)
    rate = {"shape": "constant", "peak": 0.001}
    stages = [
        {"name": "one", "tokens": 160 * LENGTH, "mixture": {"python": 0.25, "books": 0.75}},
        {"name": "two", "tokens": 80 * 2 * LENGTH, "mixture": {"python": {"start": 0, "end": 1}, "books": {"start": 1, "end": 0}}},
    ]
    for number, stage in enumerate(stages):
        stage.update(batch_size=8, sequence_length=LENGTH * (1 + number), learning_rate=rate)
    raw = {
        "name": "r",
        "output": str(tmp_path / "run"),
        "tokenizer": "t",
        "sources": {name: {"path": str(tmp_path / "shards" / name), "max_epochs": 5} for name in ("python", "books")},
        "model": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8},
        "stages": stages,
        "micro_batch_size": 4,
    }
    config = parse_config(raw, RunConfig, "test")
    readers = {name: SplitReader(source.path / "train") for name, source in config.sources.items()}
    windows = {name: reader.num_windows for name, reader in readers.items()}
    plan = compile_plan(config, windows, {name: reader.manifest.fingerprint for name, reader in readers.items()})
    run = tmp_path / "run"
    write_text(run / "config.yaml", dump_yaml(config))
    write_json(run / "plan.json", plan.as_json())

    def play(end, loader_class=Loader, dp_size=1, interruptions=()):
        ledgers = [Ledger(plan.sources) for _ in range(dp_size)]
        lineage = Lineage()
        for rank, ledger in enumerate(ledgers):
            loader = loader_class(plan, readers, token_num_bytes=NUM_BYTES, micro_batch_size=4, dp_rank=rank, dp_size=dp_size)
            for step in range(end):
                ledger.count(loader.batches(step))
        whole = ledgers[0]
        for ledger in ledgers[1:]:
            whole.merge(ledger)
        for attempt, stop in enumerate([*interruptions, end]):
            lineage.add_interval(plan.fingerprint, lineage.step, stop, attempt=attempt)
        folder = run / "checkpoints" / f"step-{end:08d}"
        write_json(folder / "ledger.json", whole.as_json())
        write_json(folder / "lineage.json", lineage.as_json())
        files = {name: {"size": 0, "sha256": sha256_file(folder / name)} for name in ("ledger.json", "lineage.json")}
        record = {"format_version": 1, "step": end, "plan": plan.fingerprint, "cursors": plan.cursors(end), "files": files}
        write_json(folder / "checkpoint.json", record)
        return run

    play.plan = plan
    play.config = config
    return play


def audit(run, *options, capsys) -> tuple[int, str]:
    code = cli.main(["audit", str(run), *options])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_agreement(train, capsys):
    run = train(30)
    code, text = audit(run, capsys=capsys)
    assert code == 0, text
    for word in ("agreed", "python", "books", "step 30 of 30", "attempt 0: steps 0 to 30", "manifests compared: 2 of 2"):
        assert word in text


@pytest.mark.parametrize("end", [1, 7, 20, 21, 30])
def test_agreement_anywhere_on_several_ranks_and_attempts(train, capsys, end):
    run = train(end, dp_size=2, interruptions=[end // 2] if end > 1 else [])
    code, text = audit(run, capsys=capsys)
    assert code == 0, text
    assert f"step {end} of 30" in text


def test_no_shards_needed(train, capsys, tmp_path):
    run = train(30)
    (tmp_path / "shards").rename(tmp_path / "elsewhere")
    code, text = audit(run, capsys=capsys)
    assert code == 0
    assert "no shards at the paths" in text


@pytest.mark.parametrize(
    ("loader_class", "said"),
    [(Dropping, "1 window fewer than planned"), (Repeating, "1 window more than planned"), (Exchanging, "not the planned ones")],
)
def test_one_wrong_window_fails(train, capsys, loader_class, said):
    code, text = audit(train(20, loader_class), capsys=capsys)
    assert code == 1
    assert said in text
    (line,) = [line for line in text.splitlines() if said in line]
    assert line.startswith(("python: ", "books: "))
    assert "MISMATCH" in text


def test_a_step_read_twice_fails(train, capsys):
    code, text = audit(train(20, Another), capsys=capsys)
    assert code == 1
    assert "not the planned ones" in text or "than planned" in text


def test_the_newest_checkpoint_is_audited_and_any_can_be_named(train, capsys):
    train(9, Dropping)
    run = train(10)
    assert audit(run, capsys=capsys)[0] == 0
    for name in ("9", "step-00000009", str(run / "checkpoints" / "step-00000009")):
        code, text = audit(run, "--checkpoint", name, capsys=capsys)
        assert code == 1
        assert "fewer" in text
    (run / "checkpoints" / ".step-00000011.123.tmp").mkdir()
    (run / "checkpoints" / "step-00000012").mkdir()  # no checkpoint.json: not whole
    assert audit(run, capsys=capsys)[0] == 0


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def test_altered_files_are_seen(train, capsys):
    run = train(20)
    folder = run / "checkpoints" / "step-00000020"
    change(folder / "ledger.json", lambda ledger: ledger["sources"]["python"].update(padding=4))
    code, text = audit(run, capsys=capsys)
    assert code == 1
    assert "ledger.json: altered" in text
    assert "python: 640 targets, 4 padding and 0 excluded do not make 640 window tokens" in text


@pytest.mark.parametrize(
    ("key", "said"),
    [("plan", "of another plan"), ("cursors", "its cursors None"), ("files", "ledger.json: altered")],
)
def test_evidence_that_is_missing_is_no_agreement(train, capsys, key, said):
    run = train(20)
    change(run / "checkpoints" / "step-00000020" / "checkpoint.json", lambda record: record.pop(key))
    code, text = audit(run, capsys=capsys)
    assert code == 1
    assert said in text


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda plan: plan["stages"][0].update(num_steps=21), "plan.json: not the plan that config.yaml declares"),
        (lambda plan: plan["sources"]["python"]["windows"].update({"16": 200}), "plan.json: not the plan that config.yaml declares"),
        (lambda plan: plan.update(seed=4), "plan.json: not the plan that config.yaml declares"),
    ],
)
def test_a_plan_that_is_not_the_configs_is_seen(train, capsys, edit, said):
    run = train(20)
    change(run / "plan.json", edit)
    code, text = audit(run, capsys=capsys)
    assert code == 1
    assert said in text


def test_a_config_changed_behind_the_runs_back_is_seen(train, capsys):
    run = train(20)
    config = train.config.model_dump(mode="json")
    config["stages"][0]["mixture"] = {"python": 0.5, "books": 0.5}
    write_text(run / "config.yaml", dump_yaml(parse_config(config, RunConfig, "test")))
    code, text = audit(run, capsys=capsys)
    assert code == 1
    assert "plan.json: not the plan that config.yaml declares" in text
    assert "lineage: steps 0 to 20 followed another plan" in text
    assert "window" in text


def test_a_lineage_that_stops_short_is_seen(train, capsys):
    run = train(20)
    folder = run / "checkpoints" / "step-00000020"
    change(folder / "lineage.json", lambda lineage: lineage["intervals"][0].update(end=19))
    code, text = audit(run, capsys=capsys)
    assert code == 1
    assert "lineage: ends at step 19, but the checkpoint is of step 20" in text
    assert "than planned" in text


def test_other_shards_are_seen(train, capsys, tmp_path):
    run = train(20)
    path = tmp_path / "shards" / "python" / "train" / "manifest.json"
    change(path, lambda manifest: manifest["prep"].update(note="changed"))
    code, text = audit(run, capsys=capsys)
    assert code == 1
    assert "python: the shards in" in text


CHECKPOINT_FILES = [f"checkpoints/step-00000020/{name}" for name in ("checkpoint.json", "ledger.json", "lineage.json")]


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", *CHECKPOINT_FILES])
@pytest.mark.parametrize("how", ["missing", "broken", "other"])
def test_bad_input_is_one_line_and_exit_code_2(train, capsys, name, how):
    run = train(20)
    path = run / name
    named = ["--checkpoint", "step-00000020"] if name.endswith("checkpoint.json") else []
    if how == "missing":
        path.unlink()
    else:
        path.write_text("{broken" if how == "broken" else "{}")
    code, text = audit(run, *named, capsys=capsys)
    assert code == 2
    assert str(path) in text
    assert "Traceback" not in text


def test_nothing_to_audit(train, capsys, tmp_path):
    assert audit(tmp_path / "nowhere", capsys=capsys) == (2, f"codemix audit: {tmp_path / 'nowhere'}: no such run folder; check the path\n")
    run = tmp_path / "run"
    code, text = audit(run, capsys=capsys)
    assert code == 2
    assert "no checkpoint to audit" in text
    train(5)
    code, text = audit(run, "--checkpoint", "step-00000006", capsys=capsys)
    assert code == 2
    assert "has no such checkpoint (it has the steps: 5); name one of these" in text
