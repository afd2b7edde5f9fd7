"""Running a study against a stand-in for the commands: done is done, failures are told, changes are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.errors import UserError
from megatron_codemix.study import command, executor, stages
from megatron_codemix.tokenizer import Tokenizer


def test_a_study_runs_to_its_report(study, capfd, calls):
    assert command.main(["run", str(study), "--jobs", "3"]) == 0
    calls = calls()
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


def test_what_is_done_is_not_done_again(study, calls):
    few = ["shares=[0.25]", "seeds=[0, 1]"]
    assert command.main(["run", str(study), *few]) == 0
    before = calls()
    assert command.main(["run", str(study), *few]) == 0
    assert calls() == before
    (study.parent / "study" / "runs" / "code-25-seed0" / "hf" / "codemix.json").unlink()
    assert command.main(["run", str(study), *few]) == 0
    assert calls()[len(before) :] == ["code-25-seed0:convert", "code-25-seed0:eval"]


def test_more_seeds_are_added_to_what_is_there(study, calls):
    assert command.main(["run", str(study), "shares=[0.25]", "seeds=[0]"]) == 0
    assert command.main(["run", str(study), "shares=[0.25]", "seeds=[0, 1]"]) == 0
    assert len(calls()) == 8 and calls()[4:] == [f"code-25-seed1:{stage}" for stage in stages.STAGES]


def test_other_documents_are_evaluated_anew(study, tmp_path, calls):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "the list"}) + "\n")
    few = ["shares=[0.25]", "seeds=[0]"]
    assert command.main(["run", str(study), *few]) == 0
    assert command.main(["run", str(study), *few, f"evaluation.bits_per_byte.other={other}"]) == 0
    assert calls()[4:] == ["code-25-seed0:eval"]
    other.write_text(json.dumps({"text": "the code"}) + "\n")
    assert command.main(["run", str(study), *few, f"evaluation.bits_per_byte.other={other}"]) == 0
    assert calls()[5:] == ["code-25-seed0:eval"]


def test_a_changed_config_is_refused_by_name(study):
    assert command.main(["run", str(study), "shares=[0.25]"]) == 0
    with pytest.raises(UserError) as caught:
        command.main(["run", str(study), "shares=[0.25]", "base.model.hidden_size=32"])
    (problem,) = caught.value.problems
    assert "model.hidden_size: was 16, is 32" in problem and "2 arms" in problem and "another 'output'" in problem
    assert command.main(["run", str(study), "shares=[0.25]"]) == 0


def test_data_prepared_anew_is_refused(study, corpus, tmp_path, texts, write_split):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    paths = [f"base.sources.code.path={copy}/code", "shares=[0.25]", "seeds=[0]"]
    assert command.main(["run", str(study), *paths]) == 0
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    shutil.rmtree(copy / "code" / "train")
    write_split(copy / "code" / "train", tokenizer, texts("code", 310))
    with pytest.raises(UserError, match=r"sources\.code: its content was prepared anew"):
        command.main(["run", str(study), *paths])


def test_a_failed_arm_is_told_and_the_others_go_on(study, monkeypatch, capfd, calls):
    monkeypatch.setenv("FAIL", "code-25-seed1:train")
    few = [str(study), "shares=[0.25, 0.5]"]
    assert command.main(["run", *few, "--jobs", "2"]) == 1
    told = capfd.readouterr()
    assert "code-25-seed1: train failed with exit code 3" in told.err and "this is why it failed" in told.err
    assert "1 of 4 arms failed" in told.err and "stopped (3)" in told.out
    assert calls().count("code-50-seed1:eval") == 1 and "code-25-seed1:audit" not in calls()
    monkeypatch.delenv("FAIL")
    before = len(calls())
    assert command.main(["run", *few]) == 0
    assert calls()[before:] == [f"code-25-seed1:{stage}" for stage in stages.STAGES]


def test_an_arm_that_fails_its_audit_is_not_evaluated_and_the_report_says_so(study, monkeypatch, capfd, calls):
    monkeypatch.setenv("FAIL", "code-0-seed0:audit")
    assert command.main(["run", str(study), "shares=[0]"]) == 1
    assert "code-0-seed0:convert" not in calls()
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


def test_an_interrupted_study_leaves_no_process_and_goes_on(study, tmp_path, stand_in):
    started = tmp_path / "started"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\nfrom megatron_codemix.study import command, stages\n"
        f"stages._CODEMIX = (sys.executable, {str(stand_in)!r})\n"
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


def test_missing_documents_are_told_before_anything_is_trained(study, calls):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file to evaluate on"):
        command.main(["run", str(study), "evaluation.bits_per_byte.code=none.jsonl"])
    assert calls() == []


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


@given(st.lists(st.integers(1, 6), max_size=12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_processes_stay_within_jobs_and_nothing_waits_for_ever(sizes, jobs):
    works = [SimpleNamespace(stages=[SimpleNamespace(processes=size)], has_begun=False) for size in sizes]
    loop = executor._Loop(works, jobs, -1, lambda *_: None, len(works))  # type: ignore[arg-type]
    while loop.waiting or loop.running:
        while work := loop._next():
            loop.waiting.remove(work)
            size = work.stages[0].processes
            loop.running.append(SimpleNamespace(slots=frozenset(sorted(loop._free())[:size]), size=size))  # type: ignore[arg-type]
        assert loop.running
        taken = [slot for item in loop.running for slot in item.slots]
        assert len(taken) == len(set(taken))
        assert sum(item.size for item in loop.running) <= jobs or len(loop.running) == 1  # type: ignore[attr-defined]
        loop.running.pop(0)


def test_gpus_that_nobody_listed_are_divided_too(monkeypatch, tmp_path):
    """Otherwise all commands would train on the first."""

    def given(jobs):
        return [executor._environment_of([slot], 1, jobs).get("CUDA_VISIBLE_DEVICES") for slot in range(jobs)]

    monkeypatch.setattr(executor, "_DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert given(2) == [None, None]
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert given(1) == [None]
    assert given(2) == ["0", "1"]
    assert given(3) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert given(2) == ["", ""]


def test_a_thread_count_of_the_user_is_kept_and_devices_are_divided(monkeypatch):
    from_executor = executor._environment_of
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert from_executor([1], 1, 2)["OMP_NUM_THREADS"] == "7"
    assert [from_executor(slots, 1, 2)["CUDA_VISIBLE_DEVICES"] for slots in ([0], [1])] == ["0,2", "1,3"]
    assert from_executor([0, 2], 2, 4)["CUDA_VISIBLE_DEVICES"] == "0,2"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [from_executor([0], *sizes)["OMP_NUM_THREADS"] for sizes in ((1, 10_000), (10_000, 1))] == ["1", "1"]
