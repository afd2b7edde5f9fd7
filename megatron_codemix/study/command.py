"""`codemix study …`: from a YAML of shares and seeds to a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import StudyConfig, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import write_text
from megatron_codemix.study.cautions import study_cautions
from megatron_codemix.study.contamination import check_contamination
from megatron_codemix.study.executor import execute
from megatron_codemix.study.expand import make_plan
from megatron_codemix.study.plan import Arm, StudyPlan, check_against_existing
from megatron_codemix.study.preset import describe_presets, study_text
from megatron_codemix.study.report import write_report
from megatron_codemix.study.stages import check_evaluation_files
from megatron_codemix.study.status import status_table
from megatron_codemix.study.words import count, listed, percent, share_name

_DESCRIPTION = """Compare mixtures: one base run, code shares × seeds, everything else equal; layouts may be crossed with them.

  codemix study init petty-374m-competitive STUDY.yaml --data shards
  codemix study plan STUDY.yaml              what would be trained; epochs per source; refuses what the corpus cannot feed
  codemix study run STUDY.yaml --jobs 2      train, audit, convert and evaluate every arm; again: go on where it stopped
  codemix study status STUDY.yaml
  codemix study report STUDY.yaml            report.html and results.json

STUDY.yaml may be followed by overrides such as base.model.num_layers=2. `status` and `report` also take the study's folder."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="codemix study", description=_DESCRIPTION)
    actions = parser.add_subparsers(dest="action", metavar="init|plan|run|status|report", required=True)
    init = actions.add_parser("init", help="write a study from a preset", prog="codemix study init")
    init.add_argument("preset", nargs="?", help="its name; --list shows them")
    init.add_argument("output", nargs="?", type=Path, metavar="OUT.yaml", help="file to write")
    init.add_argument("--list", action="store_true", help="list presets and model shapes")
    init.add_argument("--model", help="another model shape than the preset's")
    init.add_argument("--data", type=Path, default=Path("shards"), help="output folder of `codemix prep shards` (default: shards)")
    for name, words in (("plan", "show the arms and write plan.json"), ("run", "run every open stage of every arm")):
        action = actions.add_parser(name, help=words, prog=f"codemix study {name}")
        action.add_argument("study", type=Path, metavar="STUDY.yaml")
        action.add_argument("overrides", nargs="*", metavar="a.b=c", help="dotted overrides; values are YAML")
        if name == "run":
            action.add_argument(
                "--jobs",
                type=int,
                default=1,
                help="processes side by side (default: 1); an arm takes as many as its layout, one that needs more runs alone; "
                "cores, and GPUs listed in CUDA_VISIBLE_DEVICES, are divided",
            )
    for name, words in (("status", "how far each arm is"), ("report", "write report.html and results.json")):
        action = actions.add_parser(name, help=words, prog=f"codemix study {name}")
        action.add_argument("study", type=Path, metavar="STUDY", help="the YAML, or the study's folder")
        action.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides that were given to `run`")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one action; exit code 1 when an arm failed."""
    options = _parser().parse_args(argv)
    if options.action == "init":
        return _init(options)
    if options.action == "plan":
        print(describe(_planned(options.study, options.overrides)))
        return 0
    if options.action == "run":
        return run(_planned(options.study, options.overrides), options.jobs)
    plan = _existing(options.study, options.overrides)
    print(status_table(plan) if options.action == "status" else write_report(plan))
    return 0


def run(plan: StudyPlan, jobs: int) -> int:
    """Execute a plan, tell what failed; returns the exit code."""
    failures = execute(plan, jobs)
    for failure in failures:
        print(failure.tell(), file=sys.stderr)
    print(status_table(plan))
    if failures:
        print(
            f"{len(failures)} of {len(plan.trained)} arms failed; mend the cause and run again: what is done is kept",
            file=sys.stderr,
        )
    return 1 if failures else 0


def _init(options) -> int:
    if options.list:
        print(describe_presets())
        return 0
    if options.preset is None or options.output is None:
        raise UserError("init: give a preset and the file to write, 'codemix study init PRESET OUT.yaml'; --list shows the presets")
    if options.output.exists():
        raise UserError(f"{options.output}: exists already; choose another name or remove it")
    text = study_text(options.preset, data=options.data, model=options.model, output=Path("studies") / options.output.stem)
    write_text(options.output, text)
    print(f"{options.output}: see 'codemix study plan {options.output}'")
    return 0


def _planned(path: Path, overrides: Sequence[str]) -> StudyPlan:
    """Plan a study, refuse what contradicts finished work, write plan.json."""
    config = load_config(path, StudyConfig, overrides)
    plan = make_plan(config)
    check_against_existing(plan)
    check_evaluation_files(plan)
    check_contamination(plan, refuse=config.unchecked_evaluation == "refuse")
    plan.save()
    return plan


def _existing(path: Path, overrides: Sequence[str]) -> StudyPlan:
    """The plan that `run` wrote, by the study's YAML or folder."""
    return StudyPlan.load(path if path.is_dir() else load_config(path, StudyConfig, overrides).output)


def describe(plan: StudyPlan) -> str:
    """The arms in words: tokens, steps, and epochs per source; layouts, and what is trained twice."""
    others = [f"{len(kind)} {name}" for kind, name in ((plan.controls, "controls"), (plan.twins, "twins")) if kind]
    lines = [f"study {plan.name}, {plan.mode}: {listed([f'{len(plan.arms)} arms', *others])}, below {plan.output}"]
    for arm in plan.trained:
        epochs = ", ".join(f"{name} {epoch:.3f}" for name, epoch in arm.schedule["epochs"].items())
        lines.append(
            f"  {arm.name}: {_mixture_words(plan, arm)}; "
            f"{count(arm.schedule['tokens'])} tokens in {arm.schedule['steps']:,} steps; epochs: {epochs}{_layout_words(arm)}"
        )
    return "\n".join([*lines, *(f"caution: {caution}" for caution in study_cautions(plan))])


def _mixture_words(plan: StudyPlan, arm: Arm) -> str:
    if arm.control == "volume_matched":
        return f"control of {arm.control_of}, as long, all of it {plan.against}"
    if arm.control == "placebo":
        return f"control of {arm.control_of}, a placebo in the place of {plan.vary}"
    return f"{share_name(plan.vary, arm.share_value)}, {plan.against} {percent(1 - arm.share_value)}"


def _layout_words(arm: Arm) -> str:
    if arm.layout is None:
        return ""
    processes = "1 process" if arm.processes == 1 else f"{arm.processes} processes"
    return f"; layout {arm.layout}, {processes}" + (f", to compare with {arm.twin_of}" if arm.twin_of else "")
