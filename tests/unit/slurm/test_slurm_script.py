"""Batch scripts as text: what Slurm and the shell read of them is what was meant."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_codemix.config.load import parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.slurm.script import SCRIPTS, log_pattern, render, resources
from megatron_codemix.slurm.site import SiteConfig

WORDS = st.text(st.characters(codec="utf-8").filter(lambda one: one.isprintable()), min_size=1, max_size=12)


def site(**fields: Any) -> SiteConfig:
    return parse_config(fields, SiteConfig, "site.yaml")


def script(given_site: SiteConfig, **more: Any) -> str:
    return render("train.sbatch", options={"job-name": "a"}, site=given_site, variables={}, **more)


def slurm_words(line: str) -> list[str]:
    """Words of a `#SBATCH` line as sbatch 22.05 has them (_get_argument): a space outside quotes ends a word, even behind a backslash."""
    words: list[str] = []
    position = 0
    while position < len(line):
        while position < len(line) and line[position].isspace():
            position += 1
        if position == len(line) or line[position] == "#":
            break
        word, quote, escaped = "", "", False
        while position < len(line) and (quote or not line[position].isspace()):
            one, position = line[position], position + 1
            if escaped:
                word, escaped = word + one, False
            elif one == "\\":
                escaped = True
            elif quote and one == quote:
                quote = ""
            elif not quote and one in "\"'":
                quote = one
            elif not quote and one == "#":
                return [*words, word]
            else:
                word += one
        words.append(word)
    return words


@settings(max_examples=60)
@given(value=WORDS)
@example("a b # 'c' \"d\" \\ $(e) `f`")
def test_slurm_reads_an_option_as_it_was_given(value: str) -> None:
    text = render("train.sbatch", options={"comment": value}, site=SiteConfig(), variables={}, more=[f"--x={value}"])
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert [slurm_words(line) for line in lines] == [[f"--comment={value}"], [f"--x={value}"]]


@settings(max_examples=20, deadline=None)
@given(value=WORDS, argument=WORDS)
@example("$(exit 3)", "`exit 3`")
def test_the_shell_reads_variables_and_arguments_as_they_were_given(value: str, argument: str) -> None:
    text = render("train.sbatch", options={}, site=SiteConfig(), variables={"A": value}, arguments=[argument, "x"])
    prologue = text.partition("\nset -uo")[0] + '\nprintf "%s\\0" "$A" "$@"\n'
    done = subprocess.run(["bash", "-c", prologue], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [value, argument, "x"]


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "a\x1b[0m"])
def test_control_characters_are_refused(bad: str) -> None:
    for arguments in ({"options": {"comment": bad}}, {"variables": {"A": bad}}, {"arguments": [bad]}, {"more": [bad]}):
        whole = {"options": {}, "site": SiteConfig(), "variables": {}, **arguments}
        with pytest.raises(UserError, match="holds a newline or another control character"):
            render("train.sbatch", **whole)


def test_a_comment_of_the_sites_would_hide_the_job_from_us() -> None:
    for where in ({"site": SiteConfig(sbatch=["--comment=x"])}, {"site": SiteConfig(), "more": ["--comment=x"]}):
        with pytest.raises(UserError, match="leave it out"):
            render("train.sbatch", options={}, variables={}, **where)  # pyright: ignore[reportArgumentType]


def test_the_body_is_the_file_without_its_comment_block() -> None:
    text, body = script(SiteConfig()), (SCRIPTS / "train.sbatch").read_text()
    code = body[body.index("\nset -uo pipefail") + 1 :]
    assert text.endswith(code)
    assert text.count("#SBATCH") == 1


def test_a_script_is_the_same_each_time_and_bash_parses_it() -> None:
    full = site(modules=["cuda/12.8"], setup=["ulimit -n 1024"], container=["apptainer", "exec", "a b.sif"], sbatch=["--exclusive"])
    assert script(full) == script(full)
    assert subprocess.run(["bash", "-n"], input=script(full), text=True, capture_output=True, check=False).stderr == ""
    order = [script(full).index(text) for text in ("--exclusive", "CODEMIX_CONTAINER", "module load cuda/12.8", "ulimit -n 1024")]
    assert order == sorted(order)


def test_the_users_variables_win_over_the_sites_own() -> None:
    text = script(site(network_interface="ib0", environment={"NCCL_SOCKET_IFNAME": "ib1"}))
    assert "export NCCL_SOCKET_IFNAME=ib1" in text
    assert "export GLOO_SOCKET_IFNAME=ib0" in text
    assert "NCCL_SOCKET_IFNAME=ib0" not in text


def test_whole_nodes_are_asked_for() -> None:
    options = resources(site(gpus_per_node=8, cpus_per_task=96, memory="0", partition="gpu", time="2:00:00"), nodes=4)
    asked = {name: value for name, value in options.items() if value is not None}
    expected = {"nodes": 4, "ntasks-per-node": 1, "gpus-per-node": 8, "cpus-per-task": 96, "mem": "0", "time": "2:00:00"}
    assert asked == {"partition": "gpu", **expected}
    assert resources(SiteConfig(), nodes=1, time="10")["time"] == "10"
    assert resources(SiteConfig(), nodes=1)["gpus-per-node"] is None


def test_a_folder_with_a_percent_sign_is_no_pattern() -> None:
    assert log_pattern(Path("/a%j/b"), "run-%j.log") == "/a%%j/b/run-%j.log"
