"""Additive studies, their controls, and what is said of arms that repeat their sources."""

from __future__ import annotations

from fractions import Fraction

import pytest

from megatron_codemix.config import StudyConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import repetition_cautions
from megatron_codemix.study.cautions import study_cautions
from megatron_codemix.study.command import describe, main
from megatron_codemix.study.differences import against_controls
from megatron_codemix.study.expand import make_plan
from megatron_codemix.study.plan import StudyPlan


def _additive(raw: dict, **changes) -> dict:
    return {**raw, "mode": "additive", "controls": ["volume_matched"], **changes}


def _plan(raw: dict) -> StudyPlan:
    return make_plan(parse_config(raw, StudyConfig, "study.yaml"))


def test_additive_arms_have_the_language_of_the_base(tmp_path, raw):
    plan = _plan(_additive(raw(tmp_path / "s"), shares=[0, 0.2, 0.5]))
    tokens = {arm.share: arm.config["stages"][0]["tokens"] for arm in plan.arms}
    assert tokens == {"0": 2048, "1/5": 2560, "1/2": 4096}
    for arm in plan.arms:
        mixture = arm.config["stages"][0]["mixture"]
        assert Fraction(mixture["text"]) * tokens[arm.share] == 2048


def test_every_arm_with_code_has_its_controls(tmp_path, raw):
    plan = _plan(_additive(raw(tmp_path / "s")))
    assert [(arm.name, arm.control_of) for arm in plan.controls] == [
        (f"{arm.name}-volume-matched", arm.name) for arm in plan.arms if arm.share != "0"
    ]
    for control in plan.controls:
        (of,) = [arm for arm in plan.arms if arm.name == control.control_of]
        assert control.schedule["tokens"] == of.schedule["tokens"]
        assert control.config["stages"][0]["mixture"] == {"text": "1"}
        assert control.config["seeds"] == of.config["seeds"]
    plan.save()
    assert StudyPlan.load(plan.output) == plan
    assert "control of code-50-seed0, as long, all of it text" in describe(plan)


def test_a_placebo_takes_the_place_of_code(tmp_path, raw):
    study = raw(tmp_path / "s")
    study["base"]["sources"]["other"] = study["base"]["sources"]["code"]
    plan = _plan({**study, "controls": ["placebo"], "placebo": "other"})
    assert {control.config["stages"][0]["mixture"]["other"] for control in plan.controls} == {"1/4", "1/2"}
    assert all("code" not in control.config["stages"][0]["mixture"] for control in plan.controls)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mode": "competitive"}, "volume_matched is the arm of share 0"),
        ({"shares": [0.5, 1]}, "no language is left"),
        ({"controls": ["placebo"]}, "goes with 'placebo'"),
        ({"placebo": "text", "controls": ["placebo"]}, "must differ"),
        ({"placebo": "nowhere", "controls": ["placebo"]}, "no source 'nowhere'"),
        ({"controls": ["volume_matched", "volume_matched"]}, "given twice"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, raw, change, expected):
    with pytest.raises(UserError, match=expected):
        parse_config(_additive(raw(tmp_path / "s"), **change), StudyConfig, "study.yaml")


def test_controls_are_trained_evaluated_and_reported(study, calls, tmp_path):
    text = study.read_text() + "mode: additive\ncontrols: [volume_matched]\n"
    study.write_text(text.replace("max_epochs: 1", ""))
    assert main(["run", str(study), "seeds=[0]"]) == 0
    assert "code-50-seed0-volume-matched:train" in calls()
    main(["report", str(study), "seeds=[0]"])
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Difference from the volume-matched control, paired by seed" in page
    assert "Every arm has as much text, and code on top" in page


def test_arms_are_compared_with_their_own_control():
    def arm(share, seed, value, control=None):
        metrics = {"bits_per_byte": value}
        task = {"kind": "bits_per_byte", "metrics": metrics, "num_items": 1}
        return {"share": share, "seed": seed, "control": control, "evaluation": {"text": task}}

    arms = [arm(0.0, 0, 2.0), arm(0.5, 0, 1.5), arm(0.5, 1, 1.75)]
    controls = [arm(0.5, 0, 1.0, "volume_matched"), arm(0.5, 1, 1.5, "volume_matched")]
    (found,) = against_controls(arms, controls)
    assert found["control"] == "volume_matched"
    assert found["differences"] == [{"share": 0.5, "by_seed": {"0": 0.5, "1": 0.25}, "mean": 0.375, "same_sign": True}]


def test_repetition_that_differs_between_arms_is_told():
    (line,) = repetition_cautions({"a": {"code": 0.2, "text": 0.9}, "b": {"code": 2.5, "text": 0.4}})
    assert line.startswith("'code' is read 2.5 times by b, and at most once by a")
    assert repetition_cautions({"a": {"code": 0.2}, "b": {"code": 1.0}, "c": {}}) == []


def test_much_code_is_told_once_with_the_arms(tmp_path, raw):
    plan = _plan({**raw(tmp_path / "s"), "shares": [0.5, 0.8]})
    (line,) = study_cautions(plan)
    assert line.startswith("code-80-seed0 and code-80-seed1: ") and "arXiv 2408.10914" in line
    assert f"caution: {line}" in describe(plan)
