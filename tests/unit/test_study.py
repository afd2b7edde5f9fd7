"""Studies: grid and plan, the local executor against a stand-in for the commands, resuming, status, and what is collected.

The stand-in writes what docs/formats.md says, through the project's own writers, and fails on request.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_codemix.config import StudyConfig, dump_yaml, load_config, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.shards import SplitReader, SplitWriter, document_id
from megatron_codemix.study import command, executor, stages
from megatron_codemix.study.baseline import UnigramBaseline, token_counts, unigram_distribution
from megatron_codemix.study.plan import StudyPlan, changed_fields, flatten, make_plan
from megatron_codemix.study.runlog import TokenCounter
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer_training import train_tokenizer

_STAND_IN = textwrap.dedent(
    '''
    """codemix in miniature: the same files, no model. FAIL=ARM:STAGE makes a stage fail, HANG=ARM makes training hang."""
    import hashlib, json, os, sys, time
    from pathlib import Path

    class Alone:
        is_main = True
        def barrier(self): pass
        def broadcast(self, value): return value

    def train(path):
        from megatron_codemix.checkpoint import State, publish
        from megatron_codemix.config import RunConfig, load_config
        from megatron_codemix.train.inputs import open_inputs

        config = load_config(Path(path), RunConfig)
        if os.environ.get("HANG") == config.name:
            Path(os.environ["STARTED"]).touch()
            time.sleep(60)
        inputs = open_inputs(config)
        plan = inputs.plan
        config.output.mkdir(parents=True, exist_ok=True)
        per_step = config.stages[0].batch_size * config.stages[0].sequence_length
        with open(config.output / "log.jsonl", "a") as log:
            for step in range(1, plan.num_steps + 1):
                line = {"kind": "step", "step": step, "stage": "main", "loss": 8 - step / plan.num_steps, "tokens": step * per_step,
                        "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 1e4, "tflops": 0.1, "mfu": None, "seconds": 0.1}
                log.write(json.dumps(line) + "\\n")
            for name in config.sources:
                line = {"kind": "validation", "step": plan.num_steps, "tokens": plan.num_steps * per_step, "source": name, "loss": 2.0,
                        "bits_per_byte": 3.0, "target_tokens": 10, "bytes": 30}
                log.write(json.dumps(line) + "\\n")
        sources = {}
        for name, windows in plan.cursors(plan.num_steps).items():
            tokens = windows * config.stages[0].sequence_length
            sources[name] = {"windows": windows, "tokens": tokens, "targets": tokens, "padding": 0, "bytes": 3 * tokens, "hash": "0" * 32}
        state = State(step=plan.num_steps, config=config, vocab_size=inputs.tokenizer.vocab_size, plan=plan.fingerprint,
                      tokenizer_model=inputs.tokenizer.model, cursors=plan.cursors(plan.num_steps),
                      ledger={"format_version": 1, "sources": sources}, lineage={})
        publish(config.output, state, lambda folder: (folder / "weights.bin").write_bytes(config.name.encode()), 1, Alone())
        return config.name

    def main(verb, *rest):
        paths = {"train": 0, "audit": 0, "convert": 2, "eval": 0}
        arm = Path(rest[0]).name if verb == "audit" else Path(rest[paths[verb]]).parent.name
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(f"{arm}:{verb}\\n")
        if os.environ.get("FAIL") == f"{arm}:{verb}":
            print("line before the end\\nthis is why it failed")
            sys.exit(3)
        if verb == "train":
            train(rest[0])
        elif verb == "audit":
            print("code and text agree with the plan")
        elif verb == "convert":
            out = Path(rest[2])
            out.mkdir()
            (out / "codemix.json").write_text(json.dumps({"agreement": {"largest_difference": 2e-6, "positions": 9}}))
        elif verb == "eval":
            out = Path(rest[rest.index("--output") + 1])
            out.mkdir(exist_ok=True)
            place = int(hashlib.sha256(arm.encode()).hexdigest()[:6], 16) / 2**24
            tasks = {pair.split("=")[0]: {"kind": "bits_per_byte", "num_items": 3, "items": "-",
                     "metrics": {"bits_per_byte": 2 + place, "nats": 1.0, "bytes": 9, "tokens": 4, "documents": 3}}
                     for pair in rest if "=" in pair}
            (out / "results.json").write_text(json.dumps({"format_version": 1, "tasks": tasks}))

    main(*sys.argv[1:])
    '''
)
_WORDS = [
    "the",
    "study",
    "of",
    "code",
    "and",
    "text",
    "says",
    "that",
    "if",
    "x",
    "in",
    "list",
    "then",
    "return",
    "value",
    "def",
    "class",
    "import",
    "for",
    "while",
    "not",
]


def _texts(source: str, number: int) -> list[str]:
    random = np.random.default_rng([len(source), number])
    return [" ".join(random.choice(_WORDS, 30)) + (" def\n" if source == "code" else " the\n") for _ in range(number)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two small sources with a real tokenizer, real shards and held-out documents."""
    folder = tmp_path_factory.mktemp("corpus")
    model = train_tokenizer(_texts("code", 200) + _texts("text", 200), 520)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for source in ("code", "text"):
        for split, number in (("train", 300), ("valid", 20)):
            _write_split(folder / source / split, tokenizer, source, split, _texts(source, number))
        with gzip.open(folder / source / "valid" / "documents.jsonl.gz", "wt", encoding="utf-8") as handle:
            for text in _texts(source, 20):
                handle.write(json.dumps({"text": text}) + "\n")
    return folder


def _write_split(folder: Path, tokenizer: Tokenizer, source: str, split: str, texts: list[str]) -> None:
    settings = {"pack_tokens": 4096, "shard_tokens": 8192, "prep": {}, "token_dtype": "uint16", "modality": source}
    fixed = {"tokenizer_fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "end_of_text_id": tokenizer.end_of_text_id}
    with SplitWriter(folder, source=source, split=split, **settings, **fixed) as writer:
        for number, text in enumerate(texts):
            ids = np.append(tokenizer.encode(text), tokenizer.end_of_text_id)
            writer.add(ids, len(text.encode()), document_id(f"{source}/{split}/{number}"))


def _raw(corpus: Path, output: Path) -> dict:
    return {
        "name": "small",
        "output": str(output),
        "vary": "code",
        "against": "text",
        "shares": [0, 0.25, "1/2"],
        "seeds": [0, 1],
        "banner": "made by a test",
        "base": {
            "tokenizer": str(corpus / "tokenizer"),
            "sources": {"code": {"path": str(corpus / "code")}, "text": {"path": str(corpus / "text")}},
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 32},
            "stages": [
                {
                    "name": "main",
                    "tokens": 2048,
                    "batch_size": 8,
                    "sequence_length": 16,
                    "learning_rate": {"shape": "constant", "peak": 1e-3},
                }
            ],
        },
        "evaluation": {"bits_per_byte": {name: str(corpus / name / "valid" / "documents.jsonl.gz") for name in ("code", "text")}},
    }


def _plan(raw: dict) -> StudyPlan:
    return make_plan(parse_config(raw, StudyConfig, "study.yaml"))


@pytest.fixture
def study(corpus, tmp_path, monkeypatch) -> Path:
    """study.yaml in an empty folder, with the stand-in in place of the commands."""
    script = tmp_path / "stand_in.py"
    script.write_text(_STAND_IN)
    monkeypatch.setattr(stages, "_CODEMIX", (sys.executable, str(script)))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(_raw(corpus, tmp_path / "study"), sort_keys=False))
    return path


def _calls(study: Path) -> list[str]:
    path = study.parent / "calls"
    return path.read_text().split() if path.exists() else []


# --- config and plan -----------------------------------------------------------------------------------------------


def test_every_mistake_of_every_arm_is_told_at_once(corpus, tmp_path):
    raw = _raw(corpus, tmp_path)
    raw["base"] |= {"seeds": {"data": 1}, "precison": "bf16"}
    raw["base"]["model"]["num_attention_heads"] = 3
    raw["shares"].append(1.5)
    with pytest.raises(UserError) as caught:
        parse_config(raw, StudyConfig, "study.yaml")
    told = "\n".join(caught.value.problems)
    assert "shares[3]" in told and "base.seeds: the study sets it" in told
    del raw["base"]["seeds"]
    with pytest.raises(UserError) as caught:
        parse_config(raw, StudyConfig, "study.yaml")
    told = "\n".join(caught.value.problems)
    assert "base.precison: unknown key; did you mean 'precision'?" in told
    assert "base.model.num_attention_heads: 3 does not divide hidden_size 16" in told
    assert len(caught.value.problems) == 3  # each once, not once per arm


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"shares": [0.5, "1/2"]}, "shares: a value is given twice"),
        ({"shares": [0.5, 0.5000000001]}, "would share a folder"),
        ({"seeds": [3, 3]}, "seeds: a value is given twice"),
        ({"vary": "cod"}, "vary: no source 'cod' in base.sources (code, text)"),
        ({"against": "code"}, "against: must differ from 'vary'"),
    ],
)
def test_contradictions_are_refused(corpus, tmp_path, change, expected):
    with pytest.raises(UserError) as caught:
        parse_config(_raw(corpus, tmp_path) | change, StudyConfig, "study.yaml")
    assert any(expected in problem for problem in caught.value.problems)


def test_a_config_survives_its_own_yaml(corpus, tmp_path):
    config = parse_config(_raw(corpus, tmp_path), StudyConfig, "study.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path, StudyConfig) == config


def test_arms_differ_in_share_and_seed_alone(corpus, tmp_path):
    plan = _plan(_raw(corpus, tmp_path))
    assert [arm.name for arm in plan.arms] == [f"code-{share}-seed{seed}" for share in (0, 25, 50) for seed in (0, 1)]
    assert len({arm.hash for arm in plan.arms}) == 6
    first = flatten(plan.arms[0].config)
    for arm in plan.arms[1:]:
        mine = flatten(arm.config)
        differing = {key for key in first if first[key] != mine.get(key)}
        allowed = {"name", "output", "stages[0].mixture.code", "stages[0].mixture.text", "seeds.data", "seeds.init", "seeds.dropout"}
        assert differing <= allowed
    assert plan.arms[4].schedule["epochs"]["code"] == pytest.approx(plan.arms[2].schedule["epochs"]["code"] * 2)
    assert all(arm.schedule["tokens"] == 2048 and arm.schedule["steps"] == 16 for arm in plan.arms)


def test_a_stage_with_a_mixture_of_its_own_keeps_it(corpus, tmp_path):
    raw = _raw(corpus, tmp_path)
    cooldown = {**raw["base"]["stages"][0], "name": "cooldown", "tokens": 256, "mixture": {"code": 0.1, "text": 0.9}}
    raw["base"]["stages"].append(cooldown)
    mixtures = [[stage["mixture"] for stage in arm.config["stages"]] for arm in _plan(raw).arms[::2]]
    assert [mixture[0]["code"] for mixture in mixtures] == [0.0, 0.25, "1/2"]
    assert all(mixture[1] == {"code": 0.1, "text": 0.9} for mixture in mixtures)


def test_a_corpus_that_cannot_feed_an_arm_is_refused_once(corpus, tmp_path):
    raw = _raw(corpus, tmp_path)
    raw["base"]["stages"][0]["tokens"] = 10_000_000
    with pytest.raises(UserError) as caught:
        _plan(raw)
    assert any("max_epochs" in problem for problem in caught.value.problems)
    assert len(set(caught.value.problems)) == len(caught.value.problems) <= 6


def test_a_plan_survives_its_file(corpus, tmp_path):
    plan = _plan(_raw(corpus, tmp_path))
    plan.save()
    assert StudyPlan.load(tmp_path) == plan


@pytest.mark.parametrize(
    "content, expected",
    [("{", "cannot be read"), ('{"format_version": 9}', "format_version 9"), ("[]", "format_version None")],
)
def test_a_broken_plan_is_refused(tmp_path, content, expected):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        StudyPlan.load(tmp_path)


def test_what_does_not_touch_the_weights_is_not_a_change(corpus, tmp_path):
    raw = _raw(corpus, tmp_path)
    before = _plan(raw).arms[0]
    raw["base"]["logging"] = {"every_steps": 1}
    assert changed_fields(before, _plan(raw).arms[0]) == [] and _plan(raw).arms[0].hash == before.hash
    raw["base"]["optimizer"] = {"weight_decay": 0.3}
    assert changed_fields(before, _plan(raw).arms[0]) == ["optimizer.weight_decay: was 0.1, is 0.3"]


# --- run, resume, status, report ------------------------------------------------------------------------------------


def test_a_study_runs_to_its_report(study, capfd):
    assert command.main(["run", str(study), "--jobs", "3"]) == 0
    calls = _calls(study)
    assert len(calls) == 24
    for arm in ("code-0-seed0", "code-50-seed1"):
        assert [call for call in calls if call.startswith(arm)] == [f"{arm}:{stage}" for stage in ("train", "audit", "convert", "eval")]
    capfd.readouterr()
    assert command.main(["report", str(study)]) == 0
    report = Path(capfd.readouterr().out.splitlines()[-1])
    assert report == study.parent / "study" / "report.html" and report.stat().st_size > 50_000
    results = json.loads((report.parent / "results.json").read_text())
    assert [arm["state"] for arm in results["arms"]] == ["complete"] * 6
    arm = results["arms"][2]
    assert arm["consumed"]["code"]["token_share"] == pytest.approx(0.25) and arm["consumed"]["code"]["targets"] == 512
    assert arm["audit"] == {"verdict": "passed", "said": "code and text agree with the plan"}
    assert arm["model"]["tokens_per_parameter"] == pytest.approx(2048 / arm["model"]["parameters"])
    assert set(arm["stages"]) == set(stages.STAGES) and all(stage["peak_bytes"] > 1e6 for stage in arm["stages"].values())
    assert arm["conversion"] == {"largest_difference": 2e-6, "positions": 9}
    assert len(results["comparisons"]) == 2 and results["comparisons"][0]["differences"][0]["by_seed"].keys() == {"0", "1"}
    assert results["environments"][0]["versions"]["python"]


def test_what_is_done_is_not_done_again(study):
    few = ["shares=[0.25]", "seeds=[0, 1]"]
    assert command.main(["run", str(study), *few]) == 0
    before = _calls(study)
    assert command.main(["run", str(study), *few]) == 0
    assert _calls(study) == before
    (study.parent / "study" / "runs" / "code-25-seed0" / "hf" / "codemix.json").unlink()
    assert command.main(["run", str(study), *few]) == 0
    assert _calls(study)[len(before) :] == ["code-25-seed0:convert", "code-25-seed0:eval"]


def test_more_seeds_are_added_to_what_is_there(study):
    assert command.main(["run", str(study), "shares=[0.25]", "seeds=[0]"]) == 0
    assert command.main(["run", str(study), "shares=[0.25]", "seeds=[0, 1]"]) == 0
    assert len(_calls(study)) == 8 and _calls(study)[4:] == [f"code-25-seed1:{stage}" for stage in stages.STAGES]


def test_other_documents_are_evaluated_anew(study, corpus, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "the list"}) + "\n")
    few = ["shares=[0.25]", "seeds=[0]"]
    assert command.main(["run", str(study), *few]) == 0
    assert command.main(["run", str(study), *few, f"evaluation.bits_per_byte.other={other}"]) == 0
    assert _calls(study)[4:] == ["code-25-seed0:eval"]
    other.write_text(json.dumps({"text": "the code"}) + "\n")
    assert command.main(["run", str(study), *few, f"evaluation.bits_per_byte.other={other}"]) == 0
    assert _calls(study)[5:] == ["code-25-seed0:eval"]


def test_a_changed_config_is_refused_by_name(study):
    assert command.main(["run", str(study), "shares=[0.25]"]) == 0
    with pytest.raises(UserError) as caught:
        command.main(["run", str(study), "shares=[0.25]", "base.model.hidden_size=32"])
    (problem,) = caught.value.problems
    assert "model.hidden_size: was 16, is 32" in problem and "2 arms" in problem and "another 'output'" in problem
    assert command.main(["run", str(study), "shares=[0.25]"]) == 0


def test_data_prepared_anew_is_refused(study, corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    paths = [f"base.sources.code.path={copy}/code", "shares=[0.25]", "seeds=[0]"]
    assert command.main(["run", str(study), *paths]) == 0
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    shutil.rmtree(copy / "code" / "train")
    _write_split(copy / "code" / "train", tokenizer, "code", "train", _texts("code", 310))
    with pytest.raises(UserError, match=r"sources\.code: its content was prepared anew"):
        command.main(["run", str(study), *paths])


def test_a_failed_arm_is_told_and_the_others_go_on(study, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "code-25-seed1:train")
    few = [str(study), "shares=[0.25, 0.5]"]
    assert command.main(["run", *few, "--jobs", "2"]) == 1
    told = capfd.readouterr()
    assert "code-25-seed1: train failed with exit code 3" in told.err and "this is why it failed" in told.err
    assert "1 of 4 arms failed" in told.err and "stopped (3)" in told.out
    assert _calls(study).count("code-50-seed1:eval") == 1 and "code-25-seed1:audit" not in _calls(study)
    monkeypatch.delenv("FAIL")
    before = len(_calls(study))
    assert command.main(["run", *few]) == 0
    assert _calls(study)[before:] == [f"code-25-seed1:{stage}" for stage in stages.STAGES]


def test_an_arm_that_fails_its_audit_is_not_evaluated_and_the_report_says_so(study, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "code-0-seed0:audit")
    assert command.main(["run", str(study), "shares=[0]"]) == 1
    assert "code-0-seed0:convert" not in _calls(study)
    assert command.main(["report", str(study.parent / "study")]) == 0
    results = json.loads((study.parent / "study" / "results.json").read_text())
    assert results["arms"][0]["audit"] == {"verdict": "failed", "said": "line before the end\nthis is why it failed"}
    assert results["arms"][0]["state"] == "not complete: audit" and results["arms"][0]["evaluation"] == {}
    assert "This report is not complete" in (study.parent / "study" / "report.html").read_text()


def test_a_command_that_leaves_no_output_has_failed(study, monkeypatch, tmp_path, capfd):
    liar = tmp_path / "liar.py"
    liar.write_text("print('all well')\n")
    monkeypatch.setattr(stages, "_CODEMIX", (sys.executable, str(liar)))
    assert command.main(["run", str(study), "shares=[0]", "seeds=[0]"]) == 1
    assert "its output is not there" in capfd.readouterr().err


def test_an_interrupted_study_leaves_no_process_and_goes_on(study, tmp_path):
    started = tmp_path / "started"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\nfrom megatron_codemix.study import command, stages\n"
        f"stages._CODEMIX = (sys.executable, {str(tmp_path / 'stand_in.py')!r})\n"
        "sys.exit(command.main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "HANG": "code-25-seed0", "STARTED": str(started)}
    process = subprocess.Popen([sys.executable, str(driver), "run", str(study), "shares=[0.25]"], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not started.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(UserError, match="another 'codemix study run'"):
        command.main(["run", str(study), "shares=[0.25]"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) != 0
    assert command.main(["run", str(study), "shares=[0.25]"]) == 0
    records = stages.read_records(study.parent / "study" / "arms" / "code-25-seed0")
    assert records["train"]["attempts"] == 2 and records["train"]["returncode"] == 0


def test_status_says_how_far_each_arm_is(study, monkeypatch, capfd):
    assert command.main(["plan", str(study)]) == 0
    assert "code-50-seed1: code 50 %, text 50 %; 2,048 tokens in 16 steps; epochs: code" in capfd.readouterr().out
    assert command.main(["status", str(study)]) == 0
    assert capfd.readouterr().out.count("0/16") == 6
    monkeypatch.setenv("FAIL", "code-0-seed1:eval")
    command.main(["run", str(study), "shares=[0]"])
    capfd.readouterr()
    assert command.main(["status", str(study.parent / "study")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].split()[3] == "16/16" and lines[1].count("done") == 4
    assert lines[2].count("done") == 3 and lines[2].endswith("stopped (3)")


def test_missing_documents_are_told_before_anything_is_trained(study):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file to evaluate on"):
        command.main(["run", str(study), "evaluation.bits_per_byte.code=none.jsonl"])
    assert _calls(study) == []


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], "the following arguments are required"),
        (["rum", "x"], "invalid choice: 'rum'"),
        (["run", "absent.yaml"], "absent.yaml: no such file"),
        (["status", "absent"], "absent: no such file"),
        (["init"], "give a preset"),
        (["init", "petty", "out.yaml"], "no study preset 'petty'"),
    ],
)
def test_wrong_commands_are_one_line(argv, expected):
    with pytest.raises(UserError) as caught:
        command.main(argv)
    assert expected in caught.value.problems[0]


def test_a_thread_count_of_the_user_is_kept_and_devices_are_divided(monkeypatch):
    from_executor = executor._environment_of
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert from_executor(1, 2)["OMP_NUM_THREADS"] == "7"
    assert [from_executor(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,2", "1,3"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert int(from_executor(0, 10_000)["OMP_NUM_THREADS"]) == 1


# --- the pieces ---------------------------------------------------------------------------------------------------


def test_tokens_are_followed_while_a_log_grows(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "step", "step": 1, "tokens": 900}\n')  # an earlier process
    counter = TokenCounter(path)
    assert counter.tokens() == 0
    with open(path, "a") as log:
        log.write('{"kind": "step", "step": 2, "tokens": 20}\n{"kind": "validation"}\n{"kind": "step", "tok')
        log.flush()
        assert counter.tokens() == 20
        log.write('ens": 30}\n')
        log.flush()
        assert counter.tokens() == 30
    assert TokenCounter(tmp_path / "absent").tokens() == 0


def test_the_unigram_baseline_is_what_its_formula_says(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    length = 16
    expected = {}
    for source in ("code", "text"):
        reader = SplitReader(corpus / source / "train")
        windows = reader.read_windows(np.arange(reader.num_windows(length)), length)[:, 1:]
        expected[source] = np.bincount(windows.ravel().astype(np.int64), minlength=tokenizer.vocab_size)
        assert np.array_equal(token_counts(reader, length, 10**9), expected[source])
        assert token_counts(reader, length, 320).sum() == 320
    consumed = {"code": 300, "text": 900}
    weighted = sum(consumed[source] * expected[source] / expected[source].sum() for source in expected)
    probabilities = (weighted + 1) / (1200 + tokenizer.vocab_size)
    assert unigram_distribution(expected, consumed) == pytest.approx(probabilities)
    assert probabilities.sum() == pytest.approx(1)
    nats = num_bytes = 0.0
    for text in _texts("code", 20):
        ids = [*tokenizer.encode(text).tolist(), tokenizer.end_of_text_id]
        nats -= sum(math.log(probabilities[identity]) for identity in ids)
        num_bytes += len(text.encode())
    baseline = UnigramBaseline(tokenizer, {"code": corpus / "code" / "valid" / "documents.jsonl.gz"}, 10**9)
    folders = {source: corpus / source / "train" for source in consumed}
    assert baseline.of(folders, [length], consumed)["code"] == pytest.approx(nats / math.log(2) / num_bytes)


def test_documents_without_text_are_refused_by_line(corpus, tmp_path):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl"
    bad.write_text('{"text": "fine"}\n{"body": "not"}\n')
    empty.write_text("\n")
    with pytest.raises(UserError, match="line 2: not a JSON object with a 'text' field"):
        UnigramBaseline(tokenizer, {"code": bad}, 100)
    with pytest.raises(UserError, match="holds no text"):
        UnigramBaseline(tokenizer, {"code": empty}, 100)
