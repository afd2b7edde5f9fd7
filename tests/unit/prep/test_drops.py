"""drops.jsonl.zst: what was left out comes back as it was, whole or with one clear line; samples are always the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import DropRecord
from data_prep.drops import DROPS_NAME, DropEntry, DropsWriter, drop_files, join_drops, main_drops, read_drops, sample_drops
from megatron_codemix.errors import UserError
from megatron_codemix.shards import document_id


def record(number, step="text_quality", reason="too short"):
    return DropRecord(f"file-{number}.txt", step, reason, f"{number} words", f"beginning of {number}")


def written(path, records, kept=None):
    with DropsWriter(path) as drops:
        for one in records:
            drops.add(one, kept)
    return path


def test_records_come_back(tmp_path):
    records = [record(number) for number in range(3000)]
    with DropsWriter(tmp_path / DROPS_NAME) as drops:
        drops.add_all(records)
        drops.add(record(9, "duplicates", "near"), kept_instead=0xFEDCBA9876543210)
        assert drops.counts == {("text_quality", "too short"): 3000, ("duplicates", "near"): 1}
    entries = list(read_drops(tmp_path / DROPS_NAME))
    assert [(one.name, one.step, one.reason, one.detail, one.excerpt) for one in entries[:-1]] == [tuple(one) for one in records]
    assert entries[0].document_id == document_id("file-0.txt")
    assert entries[0].kept_instead is None
    assert entries[-1].kept_instead == 0xFEDCBA9876543210


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.tuples(*[st.text(st.characters(exclude_categories=()), max_size=300)] * 3), max_size=5))
def test_any_text_is_kept_in_its_line(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("drops") / DROPS_NAME
    written(path, [DropRecord(name, "step", "reason", detail, excerpt) for name, detail, excerpt in texts])
    entries = list(read_drops(path))
    assert [one.document_id for one in entries] == [document_id(name) for name, _, _ in texts]
    for one, (name, _, excerpt) in zip(entries, texts, strict=True):
        assert one.name == name.encode("utf-8", "backslashreplace").decode()
        assert one.excerpt == excerpt[:200].encode("utf-8", "backslashreplace").decode()


def test_equal_records_give_equal_bytes_and_files_join(tmp_path):
    first, second = written(tmp_path / "a", map(record, range(50))), written(tmp_path / "b", map(record, range(50, 60)))
    assert written(tmp_path / "again", map(record, range(50))).read_bytes() == first.read_bytes()
    join_drops([first, written(tmp_path / "none", []), second], tmp_path / "all")
    assert list(read_drops(tmp_path / "all")) == [*read_drops(first), *read_drops(second)]
    assert len(list(read_drops(tmp_path / "all"))) == 60


def test_what_a_killed_process_left_of_joining_goes(tmp_path):
    left = tmp_path / ".all.4711-0123abcd.tmp"
    left.write_bytes(b"half")
    join_drops([written(tmp_path / "one", [record(1)])], tmp_path / "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "one"]


def test_nothing_is_left_of_an_interrupted_file(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"), DropsWriter(tmp_path / DROPS_NAME) as drops:
        drops.add(record(1))
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:10] + b"xxxx" + data[14:], lambda data: b"no zstd" + data])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = written(tmp_path / DROPS_NAME, map(record, range(200)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="damaged"):
        list(read_drops(path))


def test_samples_do_not_depend_on_the_order(tmp_path):
    entries = [DropEntry(n, f"name-{n}", "step", "even" if n % 2 == 0 else "odd", "", "", None) for n in range(400)]
    counts, chosen = sample_drops(entries, 5)
    assert counts == {("step", "even"): 200, ("step", "odd"): 200}
    assert all(len(group) == 5 for group in chosen.values())
    assert all(one.reason == reason for (_, reason), group in chosen.items() for one in group)
    random.Random(1).shuffle(entries)
    assert sample_drops(entries, 5) == (counts, chosen)
    assert sample_drops(entries, 3)[1]["step", "odd"] == chosen["step", "odd"][:3]
    spread = [one.document_id for one in sample_drops(entries, 20)[1]["step", "even"]]
    assert min(spread) < 100
    assert max(spread) > 300


def test_no_samples_still_counts():
    entries = [DropEntry(n, str(n), "step", "reason", "", "", None) for n in range(4)]
    counts, chosen = sample_drops(entries, 0)
    assert (counts["step", "reason"], chosen["step", "reason"]) == (4, [])


def test_finished_files_take_precedence_over_those_of_chunks(tmp_path):
    written(tmp_path / "code" / DROPS_NAME, [record(1)])
    written(tmp_path / ".work" / "code" / "clean" / "00000" / DROPS_NAME, [record(1)])
    second = written(tmp_path / ".work" / "text" / "clean" / "00001" / DROPS_NAME, [record(2)])
    first = written(tmp_path / ".work" / "text" / "clean" / "00000" / DROPS_NAME, [record(3)])
    written(tmp_path / ".work" / "text" / "clean" / ".00002.9-aa.tmp" / DROPS_NAME, [record(4)])
    assert drop_files(tmp_path) == {"code": [tmp_path / "code" / DROPS_NAME], "text": [first, second]}


def test_the_command_counts_and_shows(tmp_path, capsys):
    records = [record(n) for n in range(7)] + [DropRecord("evil\x1b[2J", "secrets", "key", "AKIA\u202e", "x\ny")]
    written(tmp_path / "code" / DROPS_NAME, records)
    assert main_drops([str(tmp_path), "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "code  text_quality: too short  7 documents" in out
    assert out.count("beginning of") == 2
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert main_drops([str(tmp_path), "--samples", "2"]) == 0
    assert capsys.readouterr().out == out
    main_drops([str(tmp_path), "--step", "secrets", "--source", "code"])
    out = capsys.readouterr().out
    assert "too short" not in out
    assert f"{document_id(records[-1].name):016x}" in out


@pytest.mark.parametrize(
    "arguments, message",
    [(["--samples", "-1"], "at least 0"), (["--step", "nonsense"], "steps that did: text_quality"), (["--source", "x"], "there are: code")],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, message):
    written(tmp_path / "code" / DROPS_NAME, [record(1)])
    with pytest.raises(UserError, match=message):
        main_drops([str(tmp_path), *arguments])
    with pytest.raises(UserError, match="no such folder"):
        main_drops([str(tmp_path / "missing")])


def test_an_output_without_drops_says_so(tmp_path, capsys):
    assert main_drops([str(tmp_path)]) == 0
    assert "no record" in capsys.readouterr().out
    written(tmp_path / "code" / DROPS_NAME, [])
    assert main_drops([str(tmp_path)]) == 0
    assert "no document was left out" in capsys.readouterr().out
