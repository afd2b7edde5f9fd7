"""From shares × seeds to a plan: every mistake at once, arms that differ in what they should, changes found by name."""

from __future__ import annotations

import json

import pytest

from megatron_codemix.config import StudyConfig, dump_yaml, load_config, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.study.expand import make_plan
from megatron_codemix.study.plan import ARM_FILE, StudyPlan, begin_arm, changed_fields, check_against_existing, flatten, read_arm


def _plan(raw: dict) -> StudyPlan:
    return make_plan(parse_config(raw, StudyConfig, "study.yaml"))


def test_every_mistake_of_every_arm_is_told_at_once(tmp_path, raw):
    config = raw(tmp_path)
    config["base"] |= {"seeds": {"data": 1}, "precison": "bf16"}
    config["base"]["model"]["num_attention_heads"] = 3
    config["shares"].append(1.5)
    with pytest.raises(UserError) as caught:
        parse_config(config, StudyConfig, "study.yaml")
    told = "\n".join(caught.value.problems)
    assert "shares[3]" in told and "base.seeds: the study sets it" in told
    del config["base"]["seeds"]
    with pytest.raises(UserError) as caught:
        parse_config(config, StudyConfig, "study.yaml")
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
def test_contradictions_are_refused(tmp_path, change, expected, raw):
    with pytest.raises(UserError) as caught:
        parse_config(raw(tmp_path) | change, StudyConfig, "study.yaml")
    assert any(expected in problem for problem in caught.value.problems)


def test_a_config_survives_its_own_yaml(tmp_path, raw):
    config = parse_config(raw(tmp_path), StudyConfig, "study.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path, StudyConfig) == config


def test_arms_differ_in_share_and_seed_alone(tmp_path, raw):
    plan = _plan(raw(tmp_path))
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


def test_a_stage_with_a_mixture_of_its_own_keeps_it(tmp_path, raw):
    config = raw(tmp_path)
    cooldown = {**config["base"]["stages"][0], "name": "cooldown", "tokens": 256, "mixture": {"code": 0.1, "text": 0.9}}
    config["base"]["stages"].append(cooldown)
    mixtures = [[stage["mixture"] for stage in arm.config["stages"]] for arm in _plan(config).arms[::2]]
    assert [mixture[0]["code"] for mixture in mixtures] == [0.0, 0.25, "1/2"]
    assert all(mixture[1] == {"code": 0.1, "text": 0.9} for mixture in mixtures)


def test_a_corpus_that_cannot_feed_an_arm_is_refused_once(tmp_path, raw):
    config = raw(tmp_path)
    config["base"]["stages"][0]["tokens"] = 10_000_000
    with pytest.raises(UserError) as caught:
        _plan(config)
    assert any("max_epochs" in problem for problem in caught.value.problems)
    assert len(set(caught.value.problems)) == len(caught.value.problems) <= 6


def test_a_plan_survives_its_file(tmp_path, raw):
    plan = _plan(raw(tmp_path))
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


def test_what_does_not_touch_the_weights_is_not_a_change(tmp_path, raw):
    config = raw(tmp_path)
    before = _plan(config).arms[0]
    config["base"] |= {"logging": {"every_steps": 1}, "timeouts": {"hang_seconds": 7200.0}}
    assert changed_fields(before, _plan(config).arms[0]) == [] and _plan(config).arms[0].hash == before.hash
    config["base"]["optimizer"] = {"weight_decay": 0.3}
    assert changed_fields(before, _plan(config).arms[0]) == ["optimizer.weight_decay: was 0.1, is 0.3"]


def test_an_arm_begun_by_an_earlier_codemix_goes_on(tmp_path, raw):
    """What that one did not know yet is at its default."""
    plan = _plan(raw(tmp_path))
    arm = plan.arms[0]
    begin_arm(plan, arm)
    path = plan.arm_folder(arm) / ARM_FILE
    written = json.loads(path.read_text())
    for key in ("layout", "data_ranks", "twin_of"):
        del written[key]
    config = written["config"]
    del config["timeouts"], config["model"]["hidden_dropout"], config["model"]["attention_dropout"]
    config["parallel"] = {"tensor": 1, "pipeline": 1, "context": 1}
    config["checkpoint"] = {"every_steps": 0, "keep": 2}
    path.write_text(json.dumps(written))
    assert read_arm(path).hash == arm.hash
    check_against_existing(plan)
    config["model"]["num_layers"] += 1
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"model\.num_layers: was 2, is 1, but code-0-seed0 was begun with the former"):
        check_against_existing(plan)
