"""`codemix train` refuses what would train something else than what was asked for: a clear line each, exit code 2."""

import re

import pytest

from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.train.lock import RunLock

REFUSED = [
    (["model.hidden_size=64"], ["model.hidden_size: 64 now, 32 in the checkpoint"]),
    (["stages.0.learning_rate.peak=0.02", "seeds.data=1"], ["seeds.data: 1 now, 0", "stages.0.learning_rate.peak: 0.02 now, 0.01"]),
    (["stages.1.tokens=1024"], ["stages.1.tokens: 1024 now, 512"]),
    (["optimizer.weight_decay=0.2"], ["optimizer.weight_decay: 0.2 now, 0.1"]),
    (["precision=bf16"], ["precision: 'bf16' now, 'fp32'"]),
]


@pytest.mark.parametrize("overrides, parts", REFUSED)
def test_another_run_in_the_folder_is_refused_field_by_field(reference, capsys, overrides, parts, tiny):
    before = (reference / "log.jsonl").read_bytes(), (reference / "config.yaml").read_bytes()
    assert tiny.train(reference.parent / "run.yaml", *overrides) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == len(parts)
    for line, part in zip(shown, parts):
        assert part in line
        assert "choose another 'output'" in line
    assert before == ((reference / "log.jsonl").read_bytes(), (reference / "config.yaml").read_bytes())


def test_another_plan_is_refused_whatever_became_of_the_stored_one(run_file, capsys, tiny):
    assert tiny.train(run_file) == 0
    (run_file.parent / "run" / "plan.json").write_text("[]")
    assert tiny.train(run_file, "sources.text.train_split=valid", "sources.text.max_epochs=100") == 2
    assert "holds a run with another plan" in capsys.readouterr().err


def test_another_order_is_named(reference, capsys, tiny):
    assert tiny.train(reference.parent / "run.yaml", "data.order=blocks") == 2
    assert "holds a run with another plan (data.order: 'blocks' now, 'global' in the checkpoint)" in capsys.readouterr().err


def test_a_bound_that_decides_no_sample_may_change(reference, capsys, tiny):
    assert tiny.train(reference.parent / "run.yaml", "sources.code.max_epochs=2") == 0
    assert "finished already" in capsys.readouterr().out


def test_shards_made_anew_are_another_run(corpus, reference, tmp_path, capsys, tiny, write_split):
    other = tmp_path / "other"
    write_split(other / "text" / "train", Tokenizer.load(corpus / "tokenizer"), tiny.sentences(7, 300), modality="text")
    assert tiny.train(reference.parent / "run.yaml", f"sources.text.path={other / 'text'}", "sources.text.validation_split=null") == 2
    shown = capsys.readouterr().err
    assert re.search(r"holds a run with another plan \(sources\.text\.fingerprint: .* now, .* in the checkpoint\)", shown)
    assert shown.count("\n") == 1


def test_a_tokenizer_that_does_not_match_the_shards(run_file, tmp_path, capsys, tiny):
    tiny.train_tokenizer(tmp_path / "other", tiny.sentences(9, 50))
    assert tiny.train(run_file, f"tokenizer={tmp_path / 'other'}") == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 4
    assert all("made with another tokenizer" in line and line.startswith("codemix train: sources.") for line in shown)
    assert not (run_file.parent / "run").exists()


def test_every_missing_input_is_named_at_once(run_file, tmp_path, capsys, tiny):
    assert tiny.train(run_file, f"tokenizer={tmp_path / 'none'}", f"sources.code.path={tmp_path / 'nothing'}") == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 3
    assert "no tokenizer here" in shown[0]
    assert "sources.code: " in shown[1]


def test_a_folder_that_is_being_trained_into_is_refused(run_file, capsys, tiny):
    with RunLock(run_file.parent / "run"):
        assert tiny.train(run_file) == 2
    assert "is training into it already" in capsys.readouterr().err
    assert tiny.train(run_file) == 0
