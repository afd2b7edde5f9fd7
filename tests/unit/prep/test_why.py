"""`codemix prep why` on what `codemix prep run` made: every document of the input is found, and its story is the true one."""

from __future__ import annotations

import json
import shutil

import pytest

from data_prep.command import main
from data_prep.drops import drop_files
from data_prep.why import why
from megatron_codemix.errors import UserError
from megatron_codemix.shards import SplitReader, document_id

PREP = """
output: {output}
sources:
  text:
    kind: jsonl
    modality: text
    paths: [{folder}/text.jsonl]
    id_field: id
    language_field: lang
    clean: {{text_quality: {{rules: [gopher], min_words: 20}}}}
  more:
    kind: jsonl
    modality: text
    paths: [{folder}/more.jsonl]
    id_field: id
tokenizer: {{vocab_size: 430}}
split: {{validation: 0.1}}
deduplicate: {deduplicate}
workers: 1
"""


def text(number):
    return "the and of to be " + " ".join(f"w{(number * 7 + place * place) % 211}" for place in range(10 + number % 60)) + "\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("why")
    rows = [{"id": f"doc-{number}", "text": text(number), "lang": "en"} for number in range(120)]
    rows.append({"id": "copy", "text": text(59).replace(" ", "  "), "lang": "en"})
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [{"id": f"more-{number}", "text": text(number + 1000)} for number in range(60)] + [{"id": "copy", "text": text(58)}]
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    prep = folder / "prep.yaml"
    prep.write_text(PREP.format(output=folder / "out", folder=folder, deduplicate="{exact: true}"))
    assert main(["run", str(prep)]) == 0
    return folder / "out"


def test_a_kept_document_is_found_by_name_and_by_id(made):
    for split in ("train", "valid"):
        reader = SplitReader(made / "text" / split)
        for number in (0, reader.manifest.num_documents - 1):
            document = reader.document(number)
            identity = f"{int(document.row['document_id']):016x}"
            lines = why(made, identity)
            shard = reader.manifest.shards[0].name
            assert lines[0].startswith(f"text: kept in {split}: {shard}, pack {shard.removesuffix('.tar')}-000000, document {number} ")
            assert lines[1] == f"  {identity}  {document.tokens.size} tokens, {int(document.row['num_bytes'])} bytes"
            assert lines[2] == "  text from 0"
            assert lines[3].startswith("  begins: the and of to be w")
            name = lines[4].split(" was read as ")[1].split(" ")[0]
            assert document_id(name) == int(identity, 16)
            assert "language en" in lines[4]
            assert why(made, name) == lines


def test_a_document_that_a_step_left_out(made):
    lines = why(made, "doc-3")
    assert lines[0] == "text: left out by text_quality: gopher: too few words (18 words)"
    assert lines[1] == f"  {document_id('doc-3'):016x}  doc-3"
    assert lines[2].startswith("  begins: the and of")


def test_a_duplicate_leads_to_what_was_kept(made):
    lines = why(made, "copy", "text")
    assert lines[0].startswith("text: left out by deduplicate: exact duplicate")
    place = lines.index("  kept in its place:")
    assert f"{document_id('doc-59'):016x}" in lines[place + 2]
    lines = why(made, "copy", "more")
    assert lines[0].startswith("more: left out by deduplicate: exact duplicate")
    assert lines[lines.index("  kept in its place:") + 1].startswith("    text: kept in ")
    told = [line for line in why(made, "copy") if line.startswith(("text: left", "more: left"))]
    assert len(told) == 2


def test_every_document_of_the_input_is_accounted_for(made):
    for number in range(0, 120, 7):
        assert why(made, f"doc-{number}", "text")[0].startswith(("text: kept in ", "text: left out by "))


def test_it_needs_neither_tokenizer_nor_finished_splits(made, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(made, copy)
    shutil.rmtree(copy / "tokenizer")
    assert any("its text cannot be shown" in line for line in why(copy, "doc-59"))
    for source in ("text", "more"):
        shutil.rmtree(copy / source)
    assert set(drop_files(copy)) == {"text", "more"}
    assert why(copy, "doc-3")[0].startswith("text: left out by text_quality")
    assert why(copy, "doc-59")[0].startswith("text: was read as doc-59")


def test_a_document_held_out_that_is_also_in_training(tmp_path):
    same = [{"id": f"same-{number}", "text": text(40), "group": f"group-{number}"} for number in range(30)]
    rows = same + [{"id": f"doc-{number}", "text": text(number), "group": f"other-{number}"} for number in range(100)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"id": f"more-{n}", "text": text(n + 500)}) + "\n" for n in range(60)))
    prep = tmp_path / "prep.yaml"
    content = PREP.format(output=tmp_path / "out", folder=tmp_path, deduplicate="null")
    prep.write_text(content.replace("    language_field: lang\n", "    group_field: group\n"))
    assert main(["run", str(prep)]) == 0
    stories = [why(tmp_path / "out", f"group-{number}/same-{number}", "text")[0] for number in range(30)]
    assert set(stories) > {"text: was held out, and left out because its text also occurs in training"}


def test_unknown_documents_and_places_are_one_line(made, tmp_path, capsys):
    with pytest.raises(UserError, match="no such document"):
        main(["why", str(made), "nonsense"])
    with pytest.raises(UserError, match="there are: more, text"):
        main(["why", str(made), "doc-1", "--source", "code"])
    with pytest.raises(UserError, match="no such folder"):
        main(["why", str(tmp_path / "missing"), "doc-1"])
    with pytest.raises(UserError, match="nothing that 'codemix prep' made"):
        main(["why", str(tmp_path), "doc-1"])
    assert main(["why", str(made), "doc-3"]) == 0
    assert capsys.readouterr().out.startswith("text: left out by text_quality")


SHAPED = """
output: {output}
sources:
  files:
    kind: jsonl
    modality: code
    paths: [{folder}/code.jsonl]
    id_field: path
    path_field: path
    group_field: repo
    language_field: lang
    shape: {{repositories: {{order: path}}}}
  pairs:
    kind: jsonl
    modality: code
    paths: [{folder}/code.jsonl]
    id_field: path
    path_field: path
    group_field: repo
    language_field: lang
    shape: {{pairs: {{form: docstring_first}}}}
tokenizer: {{vocab_size: 450}}
split: {{validation: 0.2}}
workers: 1
"""


def test_files_that_were_joined_or_divided_are_found_by_their_own_names(tmp_path, capsys):
    function = 'def f{0}(left, right):\n    """Add {0} to what is left of {1}."""\n    return left + {0}\n\n\n'
    rows = [
        {
            "path": f"m{file}.py",
            "repo": f"repo{repo}",
            "lang": "Python",
            "text": "".join(function.format(n, repo * 7 + file) for n in range(3)),
        }
        for repo in range(20)
        for file in range(3)
    ]
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prep = tmp_path / "prep.yaml"
    prep.write_text(SHAPED.format(output=tmp_path / "out", folder=tmp_path))
    assert main(["run", str(prep)]) == 0
    lines = why(tmp_path / "out", "repo3/m1.py")
    assert lines[0] == "files: joined with other files of repo3"
    assert lines[1].startswith("files: kept in ")
    assert f"{document_id('repo3#0'):016x}" in lines[2]
    starts = [line for line in lines if line.startswith("pairs: divided; its function at byte ")]
    size = len(function.format(0, 22))
    assert starts == [f"pairs: divided; its function at byte {place}:" for place in (0, size, 2 * size)]
    pair = lines[lines.index(starts[1]) + 2].split()[0]
    assert pair == f"{document_id(f'repo3/m1.py:{size}'):016x}"
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out" / "pairs" / "train"), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert "⟨comments⟩Add " in shown
    assert ".⟨python⟩def f" in shown
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("OK ") == 4
