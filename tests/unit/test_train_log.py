"""log.jsonl survives a crash at any byte, and a resumed run's later lines count."""

import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.train.log import LogFile, finished, mend_log, read_log


def write(folder, *lines):
    log = LogFile(folder / "log.jsonl")
    for line in lines:
        log.append(line)
    log.close()


def step(number, loss):
    return {"kind": "step", "step": number, "loss": loss}


def test_round_trip_with_full_digits(tmp_path):
    lines = [{"kind": "start", "first_step": 0}, step(1, 0.1 + 0.2), step(2, 1e-300), {"kind": "end", "reason": "finished"}]
    write(tmp_path, *lines)
    assert read_log(tmp_path) == lines
    assert finished(tmp_path)


def test_a_crash_at_every_byte_of_the_last_line_leaves_the_lines_before_it(tmp_path):
    write(tmp_path, step(1, 1.5), step(2, 2.5))
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_log(tmp_path) == [step(1, 1.5)]
        write(tmp_path, step(2, 9.0))
        assert read_log(tmp_path) == [step(1, 1.5), step(2, 9.0)]


def test_a_torn_first_line_longer_than_a_chunk_is_cut_to_nothing(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"x" * 200_000)
    write(tmp_path, step(1, 1.0))
    assert read_log(tmp_path) == [step(1, 1.0)]


def test_a_resume_withdraws_the_steps_after_its_checkpoint(tmp_path):
    write(tmp_path, {"kind": "start", "first_step": 0}, step(1, 1.0), step(2, 2.0), step(3, 3.0))
    write(tmp_path, {"kind": "start", "first_step": 1}, step(2, 2.5))
    assert [(line.get("step"), line.get("loss")) for line in read_log(tmp_path) if line["kind"] == "step"] == [(1, 1.0), (2, 2.5)]
    assert not finished(tmp_path)


def test_an_altered_log_is_named_with_its_line(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"kind": "step"}\nnot json\n{"kind": "end"}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: not a JSON object"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 50 + b"\n", b"\0" * 7 + b'{"kind": "step"}\n', b"[1]\n", b"\n", b"\xff{}\n", b"[" * 100_000 + b"\n"],
    ids=["zeros", "zeros-before", "list", "empty", "bytes", "deep"],
)
def test_damaged_lines_are_left_out_and_kept_beside(tmp_path, capsys, damage):
    write(tmp_path, step(1, 1.0), step(2, 2.0))
    path = tmp_path / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number in (1, 2):
        path.write_bytes(lines[0] + damage + lines[1])
        assert not finished(tmp_path)
        mend_log(tmp_path)
        assert path.read_bytes() == b"".join(lines)
        aside = f"damaged-log.jsonl{'.2' if number == 2 else ''}"
        assert (tmp_path / aside).read_bytes() == lines[0] + damage + lines[1]
        assert capsys.readouterr().err == f"warning: {path}: 1 damaged line(s) were left out; the log as it was is {aside}\n"
    mend_log(tmp_path)
    assert capsys.readouterr().err == ""
    assert len(list(tmp_path.iterdir())) == 3


def test_a_torn_last_line_is_no_damage(tmp_path):
    write(tmp_path, step(1, 1.0))
    content = (tmp_path / "log.jsonl").read_bytes() + b'{"kind": "st'
    (tmp_path / "log.jsonl").write_bytes(content)
    mend_log(tmp_path)
    mend_log(tmp_path / "nowhere")
    assert (tmp_path / "log.jsonl").read_bytes() == content


def test_a_missing_log_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such log"):
        read_log(tmp_path)
    assert not finished(tmp_path)


def test_nan_never_reaches_the_log(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write(tmp_path, step(1, float("nan")))
    assert (tmp_path / "log.jsonl").read_bytes() == b""
