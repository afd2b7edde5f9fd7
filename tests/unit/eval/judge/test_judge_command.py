"""`codemix eval judge`: from answers and a judge to a win rate, and what is refused."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eval.judge.report import WHAT_THIS_IS
from eval.results import holding
from megatron_codemix.cli import main

SCHEMAS = Path(__file__).parents[4] / "eval" / "schema"
KEY = "sk-secret-0123456789"


@pytest.fixture
def judge(tmp_path: Path, server: Any) -> Callable[..., tuple[int, dict[str, Any]]]:
    """judge(a, b, *more) → (exit code, judge.json); a, b: answers to prompts 0, 1, …"""

    def run(a: list[str], b: list[str], *more: str, prompts: Any = None, name: str = "out", timeout: str = "30") -> tuple[int, dict]:
        rows = prompts or [{"question_id": n, "category": "abcd"[n % 4], "turns": [f"Question {n}?", "again"]} for n in range(len(a))]
        _write(tmp_path / "prompts.jsonl", rows)
        identities = [row.get("question_id", row.get("id", n + 1)) for n, row in enumerate(rows)]
        for side, answers in (("a", a), ("b", b)):
            _write(tmp_path / f"{side}.jsonl", [{"id": one, "output": text} for one, text in zip(identities, answers, strict=True)])
        words = ["eval", "judge", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--prompts", str(tmp_path / "prompts.jsonl")]
        words += ["--output", str(tmp_path / name), "--resamples", "400"]
        if not {"--verdicts", "--judge", "--endpoint"} & set(more):
            words += ["--endpoint", server.url, "--judge-model", "m", "--timeout", timeout, "--backoff", "0.01", "--retries", "2"]
        code = main([*words, *more])
        path = tmp_path / name / "judge.json"
        return code, json.loads(path.read_text()) if path.is_file() else {}

    return run


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _items(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def test_the_better_answers_win(judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = ["plain"] * 12 + ["good"] * 4 + ["same"] * 2 + ["x plain"] * 2
    b = ["good"] * 12 + ["plain"] * 4 + ["same"] * 2 + ["y plain"] * 2
    code, found = judge(a, b)
    assert code == 0
    assert {key: found["result"][key] for key in ("a_wins", "ties", "b_wins", "pairs")} == {
        "a_wins": 4,
        "ties": 4,
        "b_wins": 12,
        "pairs": 20,
    }
    assert found["result"]["win_rate_b"] == pytest.approx(14 / 20)
    assert found["result"]["low"] < 0.7 < found["result"]["high"]
    assert found["counts"]["identical"] == 2
    assert len(server.requests) == 36  # both orders; equal answers are not asked
    assert found["position"]["first_share"] == 0.5
    assert found["position"]["consistent_share"] == 1.0
    assert set(found["categories"]) == set("abcd")
    assert sum(row["pairs"] for row in found["categories"].values()) == 20
    assert found["flagged"] is False
    said = capsys.readouterr().out
    assert WHAT_THIS_IS in said
    jsonschema.validate(found, json.loads((SCHEMAS / "judge.schema.json").read_text()))
    items = _items(tmp_path / "out")
    schema = json.loads((SCHEMAS / "judge_items.schema.json").read_text())
    for item in items:
        jsonschema.validate(item, schema)
    assert [one["order"] for one in items[0]["verdicts"]] == ["AB", "BA"]
    assert items[0]["winner"] == "B"
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("judge.json", "items.jsonl", "judge.html")}
    assert judge(a, b)[0] == 0
    assert len(server.requests) == 36  # nothing is asked twice
    assert judge(a, b, name="again")[0] == 0
    for name, content in before.items():
        assert (tmp_path / "out" / name).read_bytes() == content
        assert (tmp_path / "again" / name).read_bytes() == content


def test_a_judge_that_likes_the_first_place_decides_nothing(
    judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda shown: shown.verdict("A")
    code, found = judge([f"a{n}" for n in range(15)], [f"b{n}" for n in range(15)])
    assert code == 0
    assert (found["result"]["ties"], found["result"]["win_rate_b"]) == (15, 0.5)
    assert found["position"]["first_share"] == 1.0
    assert found["position"]["contradictory"] == 15
    assert any("position" in one for one in found["warnings"])
    assert found["flagged"] is True
    assert found["result"]["low"] < 0.5 < found["result"]["high"]
    said = capsys.readouterr().out
    assert "shown first wins 100.0 % of 30 decided verdicts; both orders agree on 0.0 % of 15 pairs" in said
    assert "warning: the judge contradicts itself" in said
    assert "contradicts itself" in (tmp_path / "out" / "judge.html").read_text()
    jsonschema.validate(found, json.loads((SCHEMAS / "judge.schema.json").read_text()))


def test_the_plot_points_to_the_better_model(judge: Any, server: Any, tmp_path: Path) -> None:
    _, found = judge(["plain"] * 6, ["good"] * 5 + ["plain x"])
    page = (tmp_path / "out" / "judge.html").read_text()
    circle = float(re.findall(r"<circle cx='([\d.]+)'", page)[0])
    axis = {label: float(x) for x, label in re.findall(r"<text x='([\d.]+)' y='12'[^>]*>([^<]+)<", page)}
    assert list(axis) == ["0%", "50%", "100%"]
    assert axis["0%"] < axis["50%"] < circle < axis["100%"]
    assert circle == pytest.approx(axis["0%"] + (axis["100%"] - axis["0%"]) * found["result"]["win_rate_b"], abs=0.1)
    assert "to the right: better for B" in page


def test_a_judge_that_likes_length_is_seen_through(judge: Any, server: Any) -> None:
    """B is longer in four of five pairs: its raw win rate is far above one half, the length-controlled one is not."""
    server.reply = lambda shown: shown.verdict("C" if len(shown.a) == len(shown.b) else "A" if len(shown.a) > len(shown.b) else "B")
    draw = random.Random(7)
    lengths = [(draw.randint(40, 400), draw.uniform(1.02, 3.0), n % 5 != 0) for n in range(120)]
    a = [f"{n} " + "x" * int(base if longer else base * ratio) for n, (base, ratio, longer) in enumerate(lengths)]
    b = [f"{n} " + "y" * int(base * ratio if longer else base) for n, (base, ratio, longer) in enumerate(lengths)]
    _, found = judge(a, b)
    assert found["result"]["win_rate_b"] == pytest.approx(0.8)
    controlled = found["length"]["controlled"]
    assert controlled["separable"] is True
    assert controlled["phi"] > 1.0
    assert controlled["rate"] == pytest.approx(0.5, abs=0.03)
    assert controlled["low"] is None  # nothing is known of answers of equal length
    assert any("length alone" in one for one in found["warnings"])


def test_broken_replies_are_no_wins(judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = iter(["I cannot say.", "", "[[A]] [[B]]", "Verdict 00000000: [[A]]", *["x"] * 99])
    server.reply = lambda shown: shown.verdict("A") if shown.a.startswith("ok") or shown.b.startswith("ok") else next(replies)
    code, found = judge(["ok"] * 4 + ["bad0", "bad1"], ["fine"] * 4 + ["b0", "b1"], "--concurrency", "1")
    assert code == 0
    assert found["counts"]["unparsed"] == 2
    assert found["flagged"] is True
    assert found["result"]["pairs"] == 4
    assert "no readable verdict" in capsys.readouterr().out
    assert [item["winner"] for item in _items(tmp_path / "out")][4:] == [None, None]


def test_no_verdict_at_all_is_flagged(judge: Any, server: Any) -> None:
    server.reply = lambda shown: "As a language model I like both."
    code, found = judge(["a", "b"], ["c", "d"])
    assert code == 0
    assert found["flagged"] is True
    assert found["result"]["win_rate_b"] is None
    assert found["counts"]["unparsed_reasons"] == {"no_verdict": 2}
    jsonschema.validate(found, json.loads((SCHEMAS / "judge.schema.json").read_text()))


def test_an_endpoint_that_stumbles(judge: Any, server: Any) -> None:
    server.faults = [429, 503, "hang", b"<html>bad gateway", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}']
    code, found = judge(["good"] * 5, ["bad"] * 5, "--concurrency", "3", "--retries", "6", timeout="2")
    assert code == 0
    assert found["result"]["a_wins"] == 5
    assert found["counts"]["unparsed"] == 0
    assert server.most_at_once <= 4  # three, and one that the client gave up on


def test_a_judge_that_times_out(judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = [f"good {n}" for n in range(10)], [f"bad {n}" for n in range(10)]
    server.faults, server.always = [None] * 6, "hang"
    code, found = judge(a, b, "--retries", "0", "--concurrency", "2", timeout="2")
    said = capsys.readouterr().err
    assert (code, found) == (2, {})
    lines = [line for line in said.splitlines() if line.startswith("codemix eval:")]
    assert len(lines) == 1
    assert "no answer within 2 s" in lines[0]
    assert "6 finished verdicts are kept" in lines[0]
    server.always = None
    assert judge(a, b)[0] == 0
    assert "6 verdicts are there already; 14 are asked for" in capsys.readouterr().err


def test_one_request_that_fails_does_not_stop_the_rest(judge: Any, server: Any, tmp_path: Path) -> None:
    server.faults = [None, None, "drip"]
    code, found = judge(["good"] * 12, [f"bad {n}" for n in range(12)], "--retries", "0", "--concurrency", "1", timeout="2")
    assert code == 0
    assert found["counts"]["unparsed_reasons"] == {"timeout": 1}
    assert found["result"]["a_wins"] == 11
    _, again = judge(["good"] * 12, [f"bad {n}" for n in range(12)])
    assert again["result"]["a_wins"] == 12


@pytest.mark.parametrize("status, word", [(401, "HTTP 401"), (404, "HTTP 404"), (307, "redirects are not followed"), (400, "HTTP 400")])
def test_an_endpoint_that_refuses(
    judge: Any, server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, status: int, word: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.always = status
    code, _ = judge(["a"] * 20, [f"b{n}" for n in range(20)], "--api-key-env", "JUDGE_KEY")
    said = capsys.readouterr()
    assert code == 2
    assert word in said.err
    assert KEY not in said.err + said.out  # though the server sends it back
    assert len(server.requests) < 20
    assert {shown.body["path"] for shown in server.requests} == {"/v1/chat/completions"}
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_the_key_is_stored_nowhere(judge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert judge(["good"], ["b"], "--api-key-env", "JUDGE_KEY")[0] == 0
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    said = capsys.readouterr()
    assert KEY not in said.out + said.err


def test_a_server_that_repeats_the_key(judge: Any, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.reply = lambda shown: f"{shown.headers['Authorization']}\n{shown.verdict('A')}"
    assert judge(["a1", "a2"], ["b1", "b2"], "--api-key-env", "JUDGE_KEY", "--no-cache")[0] == 0
    for path in (tmp_path / "out").iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_a_terminal_obeys_no_category(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(["good"], ["b"], prompts=[{"id": "1", "category": "\x1b[31mred\nnext", "prompt": "?"}])[0] == 0
    assert "\x1b[31m" not in capsys.readouterr().out


def test_no_torch_is_needed_to_judge_files(judge: Any, server: Any, tmp_path: Path) -> None:
    assert judge(["good"], ["b"])[0] == 0
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; from megatron_codemix.cli import main; sys.exit(main())"
    )
    words = ["eval", "judge", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--output", str(tmp_path / "other"), "--endpoint", server.url, "--judge-model", "m"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other" / "judge.html").is_file()


def test_a_killed_command_goes_on(judge: Any, server: Any, tmp_path: Path) -> None:
    """kill -9 in the middle: what is finished is there, and the end is that of a run that was left alone."""
    a, b = [f"good {n}" for n in range(30)], [f"bad {n}" for n in range(30)]
    assert judge(a, b, name="whole")[0] == 0
    quick = server.reply
    server.reply = lambda shown: time.sleep(0.05) or quick(shown)
    words = [sys.executable, "-m", "megatron_codemix.cli", "eval", "judge", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    words += ["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "out"), "--endpoint", server.url]
    words += ["--judge-model", "m", "--concurrency", "1"]
    ledger = tmp_path / "out" / "verdicts.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while time.monotonic() < end and (not ledger.is_file() or ledger.read_bytes().count(b"\n") < 5):
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = ledger.read_bytes().count(b"\n")
    assert 5 <= kept < 60
    assert not (tmp_path / "out" / "judge.json").exists()
    asked = len(server.requests)
    assert judge(a, b)[0] == 0
    assert 60 - kept <= len(server.requests) - asked <= 61 - kept  # the one that was on its way may have come late
    assert (tmp_path / "out" / "judge.json").read_bytes() == (tmp_path / "whole" / "judge.json").read_bytes()


def test_a_cut_ledger_goes_on(judge: Any, server: Any, tmp_path: Path) -> None:
    a, b = ["good"] * 4, [f"bad {n}" for n in range(4)]
    assert judge(a, b)[0] == 0
    path = tmp_path / "out" / "verdicts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    forged = lines[1].replace(b"[[", b"[[[")
    path.write_bytes(lines[0] + forged + b"".join(lines[2:7]) + lines[7][: len(lines[7]) // 2])
    code, found = judge(a, b)
    assert code == 0
    assert len(server.requests) == 8 + 2  # the damaged and the cut one
    assert found["result"]["a_wins"] == 4
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_verdicts_of_people(judge: Any, tmp_path: Path) -> None:
    votes = [
        *({"id": 0, "verdict": one} for one in ("A", "A", "B")),
        {"id": 1, "verdict": "tie"},
        {"id": 2, "verdict": "b", "first": "A"},
        {"id": "from another set", "verdict": "A"},
    ]
    _write(tmp_path / "votes.jsonl", votes)
    code, found = judge(["a"] * 4, ["b"] * 4, "--verdicts", str(tmp_path / "votes.jsonl"))
    assert code == 0
    assert [item["winner"] for item in _items(tmp_path / "out")] == ["A", "tie", "B", None]
    assert found["counts"]["unparsed_reasons"] == {"not_judged": 1}
    assert found["judge"]["of_other_prompts"] == 1
    assert found["position"]["verdicts"] == 1
    jsonschema.validate(found, json.loads((SCHEMAS / "judge.schema.json").read_text()))


def test_the_page_shows_text_as_text(judge: Any, server: Any, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    server.reply = lambda shown: f"{attack}\n{shown.verdict('A')}"
    prompts = [{"id": f"p{n}{attack}", "category": attack, "instruction": attack, "context": "c"} for n in range(3)]
    assert judge([f"{attack}{n}" for n in range(3)], [f"b {n}" for n in range(3)], prompts=prompts)[0] == 0
    page = (tmp_path / "out" / "judge.html").read_text()
    assert not re.search(r"<(script|img|iframe|link)", page)
    assert "&lt;script&gt;" in page
    assert WHAT_THIS_IS in page
    assert "http" not in page.replace(server.url, "")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--endpoint", "http://x"], "needs --judge-model"),
        (["--endpoint", "file:///etc/passwd", "--judge-model", "m"], "http or https"),
        (["--endpoint", "http://user:pass@host", "--judge-model", "m"], "user or password"),
        (["--endpoint", "http://h:port", "--judge-model", "m"], "is no address"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "is not set"),
        (["--request", "[1]"], "must be a JSON object"),
        (["--request", '{"messages": []}'], "cannot be changed"),
        (["--judge-prompt", "pair-v9"], "--judge-prompts"),
        (["--timeout", "nan"], "above 0"),
        (["--concurrency", "0"], "at least 1"),
        (["--verdicts", "v.jsonl"], "no such file"),
    ],
)
def test_bad_arguments(judge: Any, server: Any, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert judge(["a"], ["b"], *more)[0] == 2
    said = capsys.readouterr().err
    assert message in said
    assert "pass@" not in said
    assert "Traceback" not in said
    assert server.requests == []


def test_one_command_judges_into_a_folder(judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holding(tmp_path / "out"):
        assert judge(["a"], ["b"])[0] == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"{tmp_path / 'out'}: another command writes results there" in line
    assert server.requests == [] and not (tmp_path / "out").exists()
    assert judge(["a"], ["b"])[0] == 0


def test_an_output_that_is_a_model_receives_no_judgement(
    judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert judge(["a"], ["b"], name="model")[0] == 2
    assert "holds a model (config.json); give another --output" in capsys.readouterr().err
    assert server.requests == [] and len(list((tmp_path / "model").iterdir())) == 1


def test_a_judgement_of_another_pair_is_named_before_it_goes(judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(["plain"] * 3, ["good"] * 3)[0] == 0
    assert judge(["plain"] * 3, ["good"] * 3)[0] == 0
    assert "other answers" not in capsys.readouterr().err
    assert judge(["good"] * 3, ["plain"] * 3)[0] == 0  # the other way round is another pair too
    said = capsys.readouterr().err.splitlines()
    told = f"{tmp_path / 'out'}: holds a judgement of other answers ({tmp_path / 'a.jsonl'} and {tmp_path / 'b.jsonl'}); it is replaced"
    assert [line for line in said if "other answers" in line] == [told]
    (tmp_path / "out" / "judge.json").write_text("[]")
    assert judge(["plain"] * 3, ["plain x"] * 3)[0] == 0
    assert "other answers" not in capsys.readouterr().err


def test_answers_that_are_not_there(judge: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [{"question_id": n, "turns": ["?"]} for n in range(3)]
    assert judge(["a"] * 3, ["b"] * 3, prompts=prompts)[0] == 0
    (tmp_path / "b.jsonl").write_text('{"id": 0, "output": "b"}\n')
    words = ["eval", "judge", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--output", str(tmp_path / "o"), "--endpoint", server.url, "--judge-model", "m"]
    capsys.readouterr()
    assert main(words) == 2
    assert "no answer to 2 of 3 prompts" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text('{"id": 0, "output": "b"}\n' * 2)
    assert main(words) == 2
    assert "b.jsonl:2: a second answer" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text('{"id": 0, "output": 7}\n')
    assert main(words) == 2
    assert "must be a string" in capsys.readouterr().err
