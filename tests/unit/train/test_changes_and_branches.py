"""Stages changed on purpose while a run lies still, and runs that branch off another one's checkpoint."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
import yaml

from megatron_codemix.batches import Loader
from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.train import read_log
from megatron_codemix.train.recorder import Recorder

TOKENS = 4 * 32
"""Of a global batch."""


def stop_at(monkeypatch, step: int) -> None:
    original = Recorder.step

    def step_and_stop(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "step", step_and_stop)


def rates(run_folder) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in read_log(run_folder) if line["kind"] == "step"}


def losses(run_folder, first: int = 1) -> list[tuple]:
    return [(line["step"], line["loss"]) for line in read_log(run_folder) if line["kind"] == "step" and line["step"] >= first]


def edited(run_file, change, name: str = "run.yaml"):
    raw = yaml.safe_load(run_file.read_text())
    change(raw)
    path = run_file.with_name(name)
    path.write_text(yaml.safe_dump(raw))
    return path


def refusal(capsys, *argv: str) -> list[str]:
    """The lines with which a command refuses."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("codemix ")]


@pytest.fixture
def stopped(run_file, monkeypatch, tiny):
    """A run that was stopped after step 5 of 12."""
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        assert tiny.train(run_file) == 75
    return run_file


def cooldown(raw):
    """Six steps of the first stage instead of eight, then a cooldown from the rate it ends with."""
    raw["stages"][0].update(tokens=6 * TOKENS, learning_rate={"shape": "constant", "peak": 0.01, "warmup_tokens": 2 * TOKENS})
    raw["stages"][1]["learning_rate"] = {"shape": "linear", "peak": "continue", "final": 1e-6}
    raw["optimizer"] = {"weight_decay": 0.05}


def test_changes_are_refused_without_the_flag_and_recorded_with_it(stopped, capsys, tiny):
    run_folder = stopped.parent / "run"
    before = json.loads((run_folder / "plan.json").read_text())["fingerprint"]
    edited(stopped, cooldown)
    lines = refusal(capsys, "train", str(stopped))
    assert re.search(r"another stages\.0\.tokens: 768 now, 1024 .* or pass --accept-changes$", lines[0])
    assert main(["train", str(stopped), "--accept-changes", "checkpoint.keep=4"]) == 0
    found = rates(run_folder)
    assert sorted(found) == list(range(1, 11))
    assert found[6] == 0.01 and found[7] == 0.01 and found[10] == 1e-6
    assert found[8] == pytest.approx(1e-6 + (0.01 - 1e-6) * 2 / 3)
    lineage = Checkpoint.open(run_folder).lineage()
    first, second = lineage["intervals"]
    assert (first["plan"], first["first"], first["end"]) == (before, 0, 5) and "changes" not in first
    assert second["plan"] == json.loads((run_folder / "plan.json").read_text())["fingerprint"] != before
    assert {"stages.0.tokens: 1024 → 768", "stages.1.learning_rate.peak: 0.002 → continue", "optimizer.weight_decay: 0.1 → 0.05"} <= set(
        second["changes"]
    )
    capsys.readouterr()
    assert main(["audit", str(run_folder)]) == 0
    said = capsys.readouterr().out
    assert "changed on purpose at step 5: stages.0.tokens: 1024 → 768" in said and "agreed" in said
    assert main(["audit", str(run_folder), "--checkpoint", "5"]) == 0, "an older checkpoint is of the plan before"
    assert main(["train", str(stopped)]) == 0, "now this is the run"
    assert "finished already" in capsys.readouterr().out


def test_a_run_that_is_finished_goes_on_with_one_more_stage(run_file, reference, capsys, tiny):
    run_folder = run_file.parent / "run"
    shutil.copytree(reference, run_folder)

    def longer(raw):
        stage = {**raw["stages"][1], "name": "third", "learning_rate": {"shape": "linear", "peak": "continue", "final": 0.0}}
        raw["stages"].append(stage)

    edited(run_file, longer)
    assert main(["train", str(run_file), "--accept-changes"]) == 0
    assert tiny.figures(run_folder)[: len(tiny.figures(reference))] == tiny.figures(reference)
    checkpoint = Checkpoint.open(run_folder)
    assert checkpoint.step == 16
    assert any(change.startswith("stages.2.name: (absent) → third") for change in checkpoint.lineage()["intervals"][-1]["changes"])
    capsys.readouterr()
    assert main(["audit", str(run_folder)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "changed on purpose" in line]
    assert said == ["  changed on purpose at step 12: stages.2: 'third' added"]


def test_sources_that_came_are_among_the_changes(stopped, corpus, capsys):
    def more(raw):
        raw["sources"] |= {"more": {"path": str(corpus / "text"), "max_epochs": 9}, "unread": {"path": str(corpus / "text")}}
        raw["stages"][1]["mixture"] = {"code": 0.5, "more": 0.5}

    edited(stopped, more)
    assert main(["train", str(stopped), "--accept-changes"]) == 0
    run_folder = stopped.parent / "run"
    changed = Checkpoint.open(run_folder).lineage()["intervals"][-1]["changes"]
    assert changed[-1] == f"sources.more: (absent) → {corpus / 'text'}" and "unread" not in " ".join(changed)
    capsys.readouterr()
    assert main(["audit", str(run_folder)]) == 0
    assert "changed on purpose at step 5: sources.more: (absent) → " in capsys.readouterr().out


def test_shortened_to_where_it_stands_a_run_is_finished_and_says_why(stopped, capsys, tiny):
    """No step is left to make: the change is in the lineage all the same, and the run is this one from now on."""
    run_folder = stopped.parent / "run"
    edited(stopped, lambda raw: (raw["stages"][0].update(tokens=5 * TOKENS), raw["stages"].pop()))
    assert main(["train", str(stopped), "--accept-changes"]) == 0
    checkpoint = Checkpoint.open(run_folder)
    assert checkpoint.step == 5 and checkpoint.record.form == "neutral"
    first, second = checkpoint.lineage()["intervals"]
    assert (first["first"], first["end"], second["first"], second["end"]) == (0, 5, 5, 5)
    assert "stages.0.tokens: 1024 → 640" in second["changes"] and second["plan"] != first["plan"]
    capsys.readouterr()
    assert main(["audit", str(run_folder)]) == 0
    assert "changed on purpose at step 5: stages.0.tokens: 1024 → 640" in capsys.readouterr().out
    assert main(["train", str(stopped)]) == 0, "now this is the run"
    assert "finished already; newest checkpoint" in capsys.readouterr().out

    edited(stopped, lambda raw: raw["stages"][0].update(tokens=6 * TOKENS))
    assert main(["train", str(stopped), "--accept-changes"]) == 0, "and it goes on from there"
    intervals = Checkpoint.open(run_folder).lineage()["intervals"]
    assert [(entry["first"], entry["end"]) for entry in intervals] == [(0, 5), (5, 5), (5, 6)]
    assert main(["audit", str(run_folder)]) == 0


def test_a_finished_run_whose_past_alone_was_changed_says_that_nothing_comes_of_it(run_file, reference, capsys):
    run_folder = run_file.parent / "run"
    shutil.copytree(reference, run_folder)
    edited(run_file, lambda raw: raw["stages"][0]["learning_rate"].update(peak=0.02))
    assert main(["train", str(run_file), "--accept-changes"]) == 0
    said = capsys.readouterr().out
    assert "tiny: finished already, so nothing was trained with what was changed (stages.0.learning_rate.peak: 0.01 → 0.02); " in said
    assert "to train on, give it more tokens or stages, to train it anew, another 'output'" in said
    assert [entry.get("changes") for entry in Checkpoint.open(run_folder).lineage()["intervals"]] == [None]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda raw: raw["stages"][0].update(mixture={"code": 0.5, "text": 0.5}), "would have read window"),
        (lambda raw: raw["stages"][0].update(batch_size=2), "step 0 had 4 windows, and would have had 2"),
        (lambda raw: raw["stages"][0].update(sequence_length=16), "windows of 32 tokens, and would have had 16"),
        (lambda raw: raw["stages"][0].update(tokens=3 * TOKENS) or raw["stages"].pop(), "the stages end at step 3"),
        (lambda raw: raw["stages"].insert(0, {**raw["stages"][1], "name": "zero"}), "step 0 had windows of 32 tokens"),
    ],
)
def test_what_would_change_the_past_is_refused_in_one_line(stopped, change, words, capsys):
    edited(stopped, change)
    (line,) = refusal(capsys, "train", str(stopped), "--accept-changes")
    assert words in line
    assert Checkpoint.open(stopped.parent / "run").step == 5


def test_other_sections_stay_fixed(stopped, capsys):
    (line,) = refusal(capsys, "train", str(stopped), "--accept-changes", "seeds.data=1")
    assert "another seeds.data: 1 now, 0 in the checkpoint" in line and "--accept-changes" not in line


def test_a_branch_into_the_trunks_folder_is_one_line(stopped, capsys):
    run_folder = stopped.parent / "run"
    path = branch_of(stopped, run_folder, 5)
    (line,) = refusal(capsys, "train", str(path), f"output={run_folder}", "--accept-changes")
    assert f"holds a run that is no branch, and this is a branch of {run_folder}, step 5; choose another 'output'" in line


def branch_of(run_file, run, step: int, name: str = "branch", **fields):
    """A run file that leaves `run` at `step` and cools down over two steps of each source."""

    def change(raw):
        stage = {
            "name": "cooldown",
            "tokens": 3 * TOKENS,
            "mixture": {"code": 0.5, "text": 0.5},
            "batch_size": 4,
            "sequence_length": 32,
            "learning_rate": {"shape": "linear", "peak": "continue", "final": 0.0},
        }
        raw.update(output=str(run_file.parent / name), branch={"run": str(run), "step": step}, stages=[{**stage, **fields}])

    return edited(run_file, change, f"{name}.yaml")


def test_a_branch_goes_on_from_its_trunk(run_file, reference, capsys, monkeypatch, tiny):
    trunk = Checkpoint.open(reference / "checkpoints" / "step-00000009")
    path = branch_of(run_file, reference, 9)
    assert main(["check", str(path), "--batches", "1"]) == 0
    said = capsys.readouterr().out
    assert "tiny, step 9" in said and "training          3 steps" in said and "first (trunk)" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("first ", "second ", "cooldown "))}
    assert rows["cooldown"][1:] == ["9", "1,152", "linear", "0.002", "0.002", "0"]
    assert main(["train", str(path)]) == 0
    folder = run_file.parent / "branch"
    found = rates(folder)
    assert sorted(found) == [10, 11, 12]
    assert [found[step] for step in (10, 11, 12)] == [0.002, 0.001, 0.0]
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.step == 12
    lineage = checkpoint.lineage()
    assert [(entry["plan"] == trunk.record.plan, entry["first"], entry["end"]) for entry in lineage["intervals"]] == [
        (True, 0, 9),
        (False, 9, 12),
    ]
    assert lineage["branched"][0]["step"] == 9
    ledger, before = checkpoint.ledger()["sources"], trunk.ledger()["sources"]
    assert {name: entry["windows"] - before[name]["windows"] for name, entry in ledger.items()} == {"code": 6, "text": 6}
    whole, resumed = tiny.figures(folder), folder.with_name("again")
    capsys.readouterr()

    # The same, stopped in its middle, with its trunk gone when it goes on.
    with monkeypatch.context() as patched:
        stop_at(patched, 11)
        moved = run_file.parent / "trunk"
        shutil.copytree(reference, moved)
        assert main(["train", str(path), f"branch.run={moved}", f"output={resumed}"]) == 75
    shutil.rmtree(moved)
    assert main(["train", str(path), f"branch.run={moved}", f"output={resumed}"]) == 0
    assert tiny.figures(resumed) == whole
    assert tiny.final_state(resumed)[2:] == tiny.final_state(folder)[2:]
    assert main(["audit", str(resumed)]) == 0
    assert "branched off tiny at step 9" in capsys.readouterr().out


def test_a_branch_with_the_trunks_own_stages_is_the_trunk(run_file, reference, tiny):
    """Left at a boundary of stages, with what comes next there: the same windows, rates and losses, to the bit."""

    def change(raw):
        raw.update(output=str(run_file.parent / "branch"), branch={"run": str(run_file.parent / "trunk"), "step": 8})
        raw["stages"] = raw["stages"][1:]
        raw["stages"][0]["learning_rate"] = {"shape": "constant", "peak": "continue"}

    kept = ["checkpoint.every_steps=5", "checkpoint.keep_steps=[8]", "checkpoint.keep=1"]
    assert main(["train", str(run_file), f"output={run_file.parent / 'trunk'}", *kept]) == 0
    assert [path.name for path in sorted((run_file.parent / "trunk" / "checkpoints").iterdir())] == ["step-00000008", "step-00000012"]
    assert main(["train", str(edited(run_file, change, "branch.yaml"))]) == 0
    assert losses(run_file.parent / "branch") == losses(reference, first=9)
    assert tiny.final_state(run_file.parent / "branch")[3] == tiny.final_state(run_file.parent / "trunk")[3]


def test_a_branch_of_a_branch_with_one_more_source_and_length(run_file, reference, corpus, capsys, tiny):
    first = branch_of(run_file, reference, 9)
    assert main(["train", str(first), "checkpoint.every_steps=1"]) == 0
    second = branch_of(first, run_file.parent / "branch", 11, "second", sequence_length=64, mixture={"code": "1/2", "more": "1/2"})
    raw = yaml.safe_load(second.read_text())
    raw["sources"]["more"] = {"path": str(corpus / "text"), "max_epochs": 2}
    second.write_text(yaml.safe_dump(raw))
    assert main(["train", str(second)]) == 0
    folder = run_file.parent / "second"
    lineage = Checkpoint.open(folder).lineage()
    assert [(entry["first"], entry["end"]) for entry in lineage["intervals"]] == [(0, 9), (9, 11), (11, 13)]
    assert len({entry["plan"] for entry in lineage["intervals"]}) == 3
    assert [entry["step"] for entry in lineage["branched"]] == [9, 11]
    assert Checkpoint.open(folder).ledger()["sources"]["more"]["windows"] == 4
    assert next(iter(rates(folder).values())) == pytest.approx(0.001)
    capsys.readouterr()
    assert main(["audit", str(folder)]) == 0
    (folder / "plans" / f"{lineage['intervals'][0]['plan']}.json").unlink()
    assert main(["audit", str(folder)]) == 1
    assert "steps 0 to 9 followed another plan" in capsys.readouterr().out


def test_the_audit_sees_a_trunk_that_is_not_the_one_declared(run_file, reference, capsys):
    path = branch_of(run_file, reference, 9)
    assert main(["train", str(path)]) == 0
    folder = run_file.parent / "branch"
    raw = yaml.safe_load((folder / "config.yaml").read_text())
    raw["branch"]["history"][0]["stages"][0]["mixture"] = {"code": 0.75, "text": 0.25}
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    capsys.readouterr()
    assert main(["audit", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "not the plan that config.yaml declares" in said and "which is not this one there: step" in said


@pytest.mark.parametrize(
    "fields, overrides, words",
    [
        ({}, ["branch.step=7"], r"has no checkpoint of step 7 \(it has: 9, 12\)"),
        ({}, ["branch.run=nowhere"], "nowhere: no such run folder"),
        ({}, ["seeds.data=3"], "seeds.data: 3, but the trunk"),
        ({}, ["model.ffn_hidden_size=32"], "checkpoint of another model"),
        ({}, ["document_masking=false"], "document_masking: False, but the trunk"),
        ({}, ["data.order=blocks"], "data.order: blocks with block_shards 4, but the trunk .* has global"),
        ({}, ["width_transfer.base_hidden_size=16"], "width_transfer.base_hidden_size: 16, but the trunk .* has None"),
        ({"learning_rate": "continue"}, [], "takes on the rate at which the trunk ended"),
        ({"learning_rate": {"shape": "linear", "peak": "continue", "final": 0.1}}, [], "is above the rate 0.002"),
    ],
)
def test_branches_that_cannot_be_are_refused_in_one_line(run_file, reference, fields, overrides, words, capsys):
    path = branch_of(run_file, reference, 9, **fields)
    for verb in ("check", "train"):
        (line,) = refusal(capsys, verb, str(path), *overrides)
        assert re.search(words, line)
    assert not (run_file.parent / "branch" / "checkpoints").exists()


def test_a_branch_declares_its_trunks_sources_with_their_shards(run_file, reference, corpus, capsys):
    path = branch_of(run_file, reference, 9, mixture={"code": 1})
    raw = yaml.safe_load(path.read_text())
    without = {**raw, "sources": {"code": raw["sources"]["code"]}}
    path.write_text(yaml.safe_dump(without))
    assert "the trunk has a source 'text'" in refusal(capsys, "check", str(path))[0]
    raw["sources"]["text"]["path"] = str(corpus / "code")
    path.write_text(yaml.safe_dump(raw))
    (line,) = refusal(capsys, "check", str(path))
    assert re.search("was not trained on these shards .*'text'", line)


def test_a_rewind_behind_a_change_records_it_again(stopped, monkeypatch, tiny):
    """Later processes know nothing of the change; what is recorded is what differs from the checkpoint that is taken over."""
    edited(stopped, lambda raw: raw["stages"][1]["learning_rate"].update(peak=0.001))
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        assert main(["train", str(stopped), "--accept-changes", "checkpoint.keep=3"]) == 75
    batches = Loader.batches

    def spoilt(self, step):
        made = batches(self, step)
        for batch in made if step == 6 else ():
            batch.loss_weights = torch.full_like(batch.loss_weights, float("nan"))
        return made

    monkeypatch.setattr(Loader, "batches", spoilt)
    guards = ["guards.non_finite=rewind", "guards.skip_before=1", "guards.skip_after=1"]
    assert tiny.train(stopped, "checkpoint.keep=3", *guards) == 0
    run_folder = stopped.parent / "run"
    lineage = Checkpoint.open(run_folder).lineage()
    assert [(entry["first"], entry["end"]) for entry in lineage["skipped"]] == [(5, 7)]
    intervals = [(entry["first"], entry["end"], entry.get("changes")) for entry in lineage["intervals"]]
    assert intervals == [(0, 5, None), (7, 12, ["stages.1.learning_rate.peak: 0.002 → 0.001"])]
    assert main(["audit", str(run_folder)]) == 0


@pytest.fixture
def spoilt(monkeypatch):
    """spoilt(step): the loss of that step (0-based) is no number."""
    batches = Loader.batches

    def install(step: int) -> None:
        def spoil(self, asked):
            made = batches(self, asked)
            for batch in made if asked == step else ():
                batch.loss_weights = torch.full_like(batch.loss_weights, float("nan"))
            return made

        monkeypatch.setattr(Loader, "batches", spoil)

    return install


GUARDS = ["guards.non_finite=rewind", "guards.skip_before=1", "guards.skip_after=1"]


@pytest.mark.parametrize("every", [9, 1])
def test_a_branch_goes_back_to_its_trunk_where_its_own_checkpoints_do_not_reach(run_file, reference, spoilt, capsys, every):
    """Before its first own checkpoint, and where all of these have trained on what is to be left out."""
    path = branch_of(run_file, reference, 9)
    folder = run_file.parent / "branch"
    spoilt(10)
    skip_before = ["guards.skip_before=2"] if every == 1 else []
    assert main(["train", str(path), f"checkpoint.every_steps={every}", *GUARDS, *skip_before]) == 0
    said = capsys.readouterr().err
    assert "went back to the checkpoint of step 9; steps 10 to 11 are left out" in said
    assert ("step-00000010 is given up" in said) == (every == 1)
    checkpoint = Checkpoint.open(folder)
    lineage = checkpoint.lineage()
    assert [(entry["first"], entry["end"]) for entry in lineage["intervals"]] == [(0, 9), (11, 12)]
    assert [(entry["first"], entry["end"]) for entry in lineage["skipped"]] == [(9, 11)] and len(lineage["branched"]) == 1
    assert main(["audit", str(folder)]) == 0, capsys.readouterr().out


def test_a_branch_that_was_cut_short_behind_its_rewind_obeys_it(run_file, reference, spoilt, monkeypatch, tiny):
    path = branch_of(run_file, reference, 9)
    folder = run_file.parent / "branch"
    with monkeypatch.context() as patched:
        spoilt(10)
        patched.setattr(Recorder, "went_back", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", str(path), *GUARDS]) == 130
    assert main(["train", str(path), *GUARDS]) == 0, "the fault is not met again"
    assert [(entry["first"], entry["end"]) for entry in Checkpoint.open(folder).lineage()["skipped"]] == [(9, 11)]
    assert len(json.loads((folder / "skips.json").read_text())["skips"]) == 1


def test_a_branch_whose_trunk_has_gone_says_so(run_file, reference, spoilt, monkeypatch, capsys):
    trunk = run_file.parent / "trunk"
    shutil.copytree(reference, trunk)
    path = branch_of(run_file, trunk, 9)
    spoilt(10)
    logged = Recorder.step

    def step(self, done, *arguments):
        logged(self, done, *arguments)
        shutil.rmtree(trunk, ignore_errors=True)

    monkeypatch.setattr(Recorder, "step", step)
    assert main(["train", str(path), *GUARDS]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("codemix ")]
    assert "there is no checkpoint to go back to, the trunk's neither: " in line
