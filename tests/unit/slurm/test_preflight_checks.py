"""A node's own checks, and what the comparison of nodes concludes from them."""

from pathlib import Path
from typing import Any

import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.slurm.preflight import agent, checks, command
from megatron_codemix.slurm.preflight.report import Fault, Report
from megatron_codemix.slurm.preflight.settings import PreflightConfig
from megatron_codemix.slurm.preflight.verdict import compare, compare_pairs, decide

_ROW = "{index}, NVIDIA H200, 570.86, 143771, {used}, 35, {errors}, {slow}\n"


def _gpus(*, used: str = "4", errors: str = "0", slow: str = "Not Active") -> str:
    good = _ROW.format(index=0, used="4", errors="0", slow="Not Active")
    return good + _ROW.format(index=1, used=used, errors=errors, slow=slow)


def test_a_disk_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    found = checks.check_disk(tmp_path / "new", 0.0)
    assert found["free_gib"] >= 0 and found["write_mib_per_s"] > 0 and abs(found["clock_ahead_seconds"]) < 60
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_with_too_little_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(checks.CheckFailed, match=r"GiB free, 1e\+09 asked for"):
        checks.check_disk(tmp_path, 1e9)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_that_is_full_or_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(checks.CheckFailed, match="cannot be written and read"):
        checks.check_disk(tmp_path / "file" / "below", 0.0)
    with pytest.raises(checks.CheckFailed, match="cannot be written and read"):
        checks.check_disk(Path("/proc/self"), 0.0)


def test_a_folder_that_is_not_the_shared_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_SHARED_SECONDS", 0.05)
    (tmp_path / "seen").write_text("text")
    assert checks.check_shared(str(tmp_path / "seen"), "text") == {"folder": str(tmp_path)}
    with pytest.raises(checks.CheckFailed, match="is not seen"):
        checks.check_shared(str(tmp_path / "absent"), "text")
    with pytest.raises(checks.CheckFailed, match="holds something else"):
        checks.check_shared(str(tmp_path / "seen"), "other")


@pytest.mark.parametrize(("visible", "count"), [(None, 3), ("0,1", 2), ("", 0), ("-1", 0), ("0,1,2,3,4", 3)])
def test_gpus_are_counted_without_the_driver(tmp_path: Path, visible: str | None, count: int) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia7", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert checks.visible_gpus(environment, tmp_path) == count


def test_gpus_of_the_driver() -> None:
    rows = checks.parse_gpus(_gpus(), 2.0)
    assert [row["index"] for row in rows] == ["0", "1"] and rows[0]["name"] == "NVIDIA H200"
    assert checks.parse_gpus(_gpus(errors="[N/A]", slow="[N/A]", used="[N/A]"), 2.0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"errors": "3"}, "GPU 1: 3 uncorrected memory errors"),
        ({"slow": "Active"}, "GPU 1: slowed down by its hardware"),
        ({"used": "81920"}, "GPU 1: 80.0 GiB of its memory are in use"),
    ],
)
def test_a_bad_gpu_is_named(row: dict[str, str], said: str) -> None:
    with pytest.raises(checks.CheckFailed, match=said):
        checks.parse_gpus(_gpus(**row), 2.0)


def test_too_few_gpus_are_named() -> None:
    with pytest.raises(checks.CheckFailed, match="7 of 8 GPUs are visible"):
        checks.check_gpus(7, 8, 2.0)
    assert checks.check_gpus(0, None, 2.0) == {"visible": 0, "devices": []}


def test_the_code_is_told_apart_by_its_content() -> None:
    found = checks.check_versions()
    assert found["python"].startswith("3.") and len(found["code"]) == 12
    assert found == checks.check_versions()


def _reports(count: int = 4, *, gpu: bool = True, **of_n2: Any) -> list[Report]:
    """Nodes n1, n2 …, alike but for what is said of n2: offset, tflops, gib, and any version."""
    reports = []
    for number in range(1, count + 1):
        mine = of_n2 if number == 2 else {}
        one = Report(f"n{number}", workers=1, clock_offset=mine.get("offset", 0.01 * number), clock_uncertainty=0.001)
        versions = {"python": "3.12.1", "code": "abc", **{name: mine[name] for name in ("python", "code") if name in mine}}
        torch = {"torch": mine.get("torch", "2.13.0"), "cuda": "13.0", "cuda_device": gpu, "device": mine.get("device", "H200")}
        one.checks = {"versions": versions, "torch 0": torch, "matmul 0": {"tflops": mine.get("tflops", 700.0 + number)}}
        one.pairs = {"other": mine.get("gib", 40.0 + number)}
        reports.append(one)
    return reports


def _bad(reports: list[Report], config: PreflightConfig | None = None) -> dict[str, str]:
    compare(reports, config or PreflightConfig(), "n1")
    compare_pairs(reports, config or PreflightConfig())
    return {one.node: one.reason for one in reports if not one.good}


@pytest.mark.parametrize(
    ("of_n2", "said"),
    [
        ({"offset": -60.0}, "clock is 60.0 s behind the others' (2 allowed); set it (chronyc makestep)"),
        ({"torch": "2.12.0"}, "torch is 2.12.0, 2.13.0 on the others"),
        ({"code": "def"}, "code is def, abc on the others"),
        ({"device": "H100"}, "device is H100, H200 on the others"),
        ({"tflops": 300.0}, "matrix product on device 0: 300 TFLOP/s, 702 on the median node"),
        ({"gib": 10.0}, "all-reduce with its best partner: 10 GiB/s, 42 on the median node"),
    ],
)
@pytest.mark.parametrize("count", [3, 4])
def test_what_shows_only_beside_the_others(count: int, of_n2: dict[str, Any], said: str) -> None:
    found = _bad(_reports(count, **of_n2))
    assert list(found) == ["n2"]
    assert found["n2"].split(", ")[0] == said.split(", ")[0]


def test_of_two_clocks_and_versions_the_batch_scripts_node_is_right() -> None:
    assert list(_bad(_reports(2, offset=60.0, python="3.11.1"))) == ["n2"]
    assert _bad(_reports(1)) == {}


def test_a_clock_is_not_blamed_for_a_slow_answer() -> None:
    reports = _reports(offset=2.5)
    reports[1].clock_uncertainty = 1.0
    assert _bad(reports) == {}


def test_nodes_alike_are_good_and_nothing_is_said() -> None:
    assert _bad(_reports()) == {}
    assert _bad(_reports(gpu=False, tflops=1.0, gib=0.1)) == {}, "without GPUs a speed is no fault"


def test_what_nodes_have_in_common_ends_the_job() -> None:
    reports = [Report("n1", [Fault("disk run", "full")]), Report("n2", [Fault("clock", "late"), Fault("disk run", "full")])]
    verdict = decide(reports, 1)
    assert (verdict.chosen, verdict.stop) == ((), "full")
    assert decide([*reports, Report("n3")], 1).chosen == ("n3",)
    pair = [Report("n1", [Fault("all-reduce", "with n2")]), Report("n2", [Fault("all-reduce", "with n1")])]
    assert not decide(pair, 1).stop, "of two nodes one may be good"
    assert decide([*pair, Report("n3", [Fault("all-reduce", "with n1")])], 1).stop
    assert not decide([Report("n1", [Fault("disk run", "full")])], 1).stop, "of one nothing can be said"


def test_too_few_good_nodes() -> None:
    verdict = decide([Report("n1"), Report("n2", [Fault("clock", "late")]), Report("n3")], 3)
    assert not verdict.goes_on and not verdict.stop
    assert verdict.lines(3, 3) == ["n2: late", "2 of 3 nodes are good, 3 needed"]


@pytest.mark.parametrize(
    "argv",
    [["--need", "2"], ["--settings", "{"], ["--settings", '{"minimum": 1}'], ["--nodes", "n1,n1"], ["--nodes", "n[1-2]"], ["--node", "n1"]],
)
def test_wrong_input_is_told_before_anything_starts(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(command, "Coordinator", None)
    with pytest.raises(UserError):
        command.main(argv)


def test_a_site_says_how_many_gpus_there_must_be() -> None:
    assert PreflightConfig().of_site(8).gpus == 8
    assert PreflightConfig().of_site(0).gpus is None
    assert PreflightConfig(gpus=0).of_site(8).gpus == 0
    assert PreflightConfig.model_validate_json(PreflightConfig(slowest=0.7).as_json(4)) == PreflightConfig(slowest=0.7, gpus=4)


def test_the_agents_get_what_srun_and_the_container_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEMIX_SRUN", "--cpu-bind=none --comment='a b'")
    monkeypatch.setenv("CODEMIX_CONTAINER", "apptainer exec --nv 'my image.sif'")
    monkeypatch.setenv("CODEMIX_PYTHON", "/env/bin/python")
    words = command._command("n7", {"gpus": 8})
    assert words[0] == "srun" and "--nodelist=n7" in words and "--overlap" in words
    at = words.index("--comment=a b")
    assert words[at + 1 : at + 6] == ["apptainer", "exec", "--nv", "my image.sif", "/env/bin/python"]
    assert words[-1] == '{"gpus": 8}'


def test_a_temporary_folder_of_the_login_node_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "session-7"))
    assert agent._folder(None) == Path("/tmp")
    (tmp_path / "session-7").mkdir()
    assert agent._folder(None) == tmp_path / "session-7"
    assert agent._folder("$TMPDIR/x") == tmp_path / "session-7" / "x"
