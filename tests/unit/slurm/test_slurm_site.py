"""What a cluster asks of every job: found, read, and refused with every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_codemix.config import load_config
from megatron_codemix.config.load import parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.slurm.site import SiteConfig, find_site, load_site, seconds_of

EXAMPLE = Path(__file__).parents[3] / "launch_scripts" / "site.example.yaml"


def site(**fields: Any) -> SiteConfig:
    return parse_config(fields, SiteConfig, "site.yaml")


def problems(**fields: Any) -> tuple[str, ...]:
    with pytest.raises(UserError) as refused:
        site(**fields)
    return refused.value.problems


def test_the_example_is_read_and_names_every_field() -> None:
    read = load_config(EXAMPLE, SiteConfig)
    assert (read.gpus_per_node, read.processes, read.node_storage.bytes) == (8, 8, 2 * 10**12)  # pyright: ignore[reportOptionalMemberAccess]
    named = yaml.safe_load(EXAMPLE.read_text())
    assert set(named) == set(SiteConfig.model_fields)
    for section in ("node_storage", "preflight"):
        assert set(named[section]) == set(getattr(read, section).model_dump())


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_site(None, environment={"HOME": str(tmp_path)}) == SiteConfig()
    assert SiteConfig().processes == 1


def test_the_file_is_looked_for_in_three_places(tmp_path: Path) -> None:
    usual = tmp_path / ".config" / "codemix" / "site.yaml"
    home = {"HOME": str(tmp_path)}
    assert find_site(None, home) is None
    usual.parent.mkdir(parents=True)
    usual.write_text("partition: usual\n")
    assert find_site(None, home) == usual
    named = tmp_path / "named.yaml"
    assert find_site(None, {**home, "CODEMIX_SITE": str(named)}) == named
    assert find_site(tmp_path / "given.yaml", {**home, "CODEMIX_SITE": str(named)}) == tmp_path / "given.yaml"
    assert load_site(None, environment=home).partition == "usual"


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; check the path"):
        load_site(None, environment={"CODEMIX_SITE": str(tmp_path / "none.yaml")})


def test_every_mistake_is_told_at_once() -> None:
    lines = problems(partion="gpu", gpus_per_node=-1, time="1 day", signal_seconds=5, environment={"A-B": "x"})
    assert any("partion: unknown key; did you mean 'partition'?" in line for line in lines)
    assert {line.split(": ")[1].split(".")[0] for line in lines} == {"partion", "gpus_per_node", "time", "signal_seconds", "environment"}


def test_a_time_that_yaml_reads_as_a_number_is_refused_with_the_way_out() -> None:
    read = yaml.safe_load("time: 24:00:00")
    assert read == {"time": 86400}
    (line,) = problems(**read)
    assert "write it in quotes: '24:00:00'" in line


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("60", 3600), ("90:30", 5430), ("24:00:00", 86400), ("2-12", 216000), ("1-00:30", 88200), ("1-01:01:01", 90061)],
)
def test_times_are_what_slurm_makes_of_them(time: str, seconds: int) -> None:
    assert (site(time=time, signal_seconds=60).time, seconds_of(time)) == (time, seconds)


def test_a_warning_must_come_before_the_end() -> None:
    (line,) = problems(time="5:00", signal_seconds=300)
    assert "signal_seconds: 300 is not before the end of time 5:00" in line


@pytest.mark.parametrize("field", ["partition", "account", "network_interface", "python"])
def test_a_newline_cannot_begin_another_command(field: str) -> None:
    (line,) = problems(**{field: "a\nrm -rf /"})
    assert line.startswith(f"site.yaml: {field}: must be one line")


@pytest.mark.parametrize("folder", ["relative", "/local/$(reboot)", "/local/`id`", '/a"b', "/a b", "/a;b"])
def test_a_folder_of_a_node_can_hold_variables_and_no_commands(folder: str) -> None:
    (line,) = problems(node_storage={"folder": folder, "bytes": 1})
    assert "not a folder of a node" in line


def test_node_storage_takes_variables() -> None:
    for folder in ("/local/$SLURM_JOB_ID", "/scratch/${USER}/x-1"):
        read = site(node_storage={"folder": folder, "bytes": 1e9}).node_storage
        assert read is not None
        assert read.folder == folder


def test_processes_follow_the_gpus() -> None:
    assert site(gpus_per_node=8).processes == 8
    assert site(gpus_per_node=8, processes_per_node=4).processes == 4
    assert site(memory=0).memory == "0"
