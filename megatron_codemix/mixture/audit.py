"""`codemix audit RUN`: is what a run consumed what its config declares?

Three things are compared, none of which is derived from another at audit time: the config, from which the plan
is compiled again; the lineage, which says which steps the weights went through; and the ledger, which was
counted from the batches. Needs no shards; where they are there, their manifests are compared as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import RunConfig, Url, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_file
from megatron_codemix.mixture.ledger import Ledger
from megatron_codemix.mixture.lineage import Lineage
from megatron_codemix.mixture.plan import Plan
from megatron_codemix.mixture.reconcile import Expected, expect, lineage_problems, reconcile
from megatron_codemix.mixture.stored import FORMER_PLANS, disagreement, former_plan, recompile, stored_plan
from megatron_codemix.mixture.table import align
from megatron_codemix.shards import MANIFEST_NAME, Manifest

_DESCRIPTION = """Reconcile what a run consumed with what it declared.

  codemix audit RUN                                     the newest checkpoint of the run
  codemix audit RUN --checkpoint 100                    another one, by its step, name or path

Exit code 0: ledger, lineage, plan and config agree. 1: they do not, and a line says where."""


def _checkpoint_folder(run: Path, named: str | None) -> Path:
    folder = run / "checkpoints"
    if named is not None and re.fullmatch(r"\d+", named):
        named = f"step-{int(named):08d}"
    whole = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and (path / "checkpoint.json").is_file()]
    steps = {int(path.name.removeprefix("step-")): path for path in whole}
    if named is not None:
        found = next((path for path in (folder / named, Path(named)) if path.is_dir()), None)
        if found is None:
            there = ", ".join(f"{step:,}" for step in sorted(steps)) or "none"
            raise UserError(f"--checkpoint {named}: {run} has no such checkpoint (it has the steps: {there}); name one of these")
        return found
    if not steps:
        raise UserError(f"{folder}: no checkpoint to audit; train the run until it has saved one")
    return steps[max(steps)]


def _record_problems(checkpoint: Path, record: Mapping[str, Any], plan: Plan) -> list[str]:
    """What checkpoint.json itself says of plan, cursors and the two files that the audit reads."""
    problems = []
    step = record["step"]
    if record.get("plan") != plan.fingerprint:
        problems.append(f"checkpoint.json: of another plan ({str(record.get('plan'))[:12]}…, not {plan.fingerprint[:12]}…)")
    elif step <= plan.num_steps and record.get("cursors") != plan.cursors(step):
        problems.append(f"checkpoint.json: its cursors {record.get('cursors')} are not the plan's {plan.cursors(step)}")
    files = record.get("files")
    for name in ("ledger.json", "lineage.json"):
        entry = files.get(name) if isinstance(files, Mapping) else None
        if not isinstance(entry, Mapping) or entry.get("sha256") != sha256_file(checkpoint / name):
            problems.append(f"{name}: altered since the checkpoint was published (its sha256 is not the one that checkpoint.json records)")
    return problems


def _followed(run: Path, record: Mapping[str, Any]) -> tuple[RunConfig, Plan, list[str]]:
    """Config and plan of a checkpoint: the run's own or, of a checkpoint from before a change, those kept then."""
    config, stored = load_config(run / "config.yaml", RunConfig), stored_plan(run / "plan.json")
    plan = recompile(config, stored, str(run / "plan.json"))
    problems = []
    if plan.as_json() != stored:
        prints = f"fingerprint {str(stored.get('fingerprint'))[:12]}…, recomputed {plan.fingerprint[:12]}…"
        problems.append(f"plan.json: not the plan that config.yaml declares ({prints})")
    if record.get("plan") != plan.fingerprint:
        former = former_plan(run, str(record.get("plan")))
        if former is not None:
            return load_config(run / FORMER_PLANS / f"{former.fingerprint}.yaml", RunConfig), former, problems
    return config, plan, problems


def _chain_problems(run: Path, plan: Plan, lineage: Lineage) -> list[str]:
    """Steps that followed other plans than the checkpoint's, unless those read the same there."""
    problems, former = [], {}
    for interval in lineage.intervals:
        if interval.plan == plan.fingerprint:
            continue
        if interval.plan not in former:
            former[interval.plan] = former_plan(run, interval.plan)
        before, steps = former[interval.plan], f"steps {interval.first:,} to {interval.end:,}"
        if before is None:
            problems.append(
                f"lineage: {steps} followed another plan ({interval.plan[:12]}…, not {plan.fingerprint[:12]}…), which the run does not keep"
            )
            continue
        words = disagreement(before, plan, interval.first, interval.end) if interval.end <= before.num_steps else "its plan ends before"
        if words:
            problems.append(f"lineage: {steps} followed the plan {interval.plan[:12]}…, which is not this one there: {words}")
    return problems


def _manifest_problems(config: RunConfig, plan: Plan) -> tuple[list[str], int]:
    """Sources whose shards are no longer those of the plan, and how many could be looked at."""
    problems, seen = [], 0
    for name, source in config.sources.items():
        folder = source.path / source.train_split
        if isinstance(folder, Url) or not (folder / MANIFEST_NAME).is_file():
            continue
        seen += 1
        found, planned = Manifest.load(folder).fingerprint, plan.described(name)["fingerprint"]
        if found != planned:
            problems.append(f"{name}: the shards in {folder} are not those of the run (fingerprint {found[:12]}…, planned {planned[:12]}…)")
    return problems, seen


def _table(expected: Mapping[str, Expected], ledger: Ledger) -> list[str]:
    rows = [("source", "windows", "planned", "share", "tokens", "targets", "padding", "excluded", "bytes", "epochs", "hash")]
    total = max(1, sum(ledger.of(name)["tokens"] for name in ledger.sources))
    for name in ledger.sources:
        of, planned = ledger.of(name), expected.get(name)
        head = (name, f"{of['windows']:,}", f"{planned.windows:,}" if planned else "-", f"{of['tokens'] / total:.5f}")
        counts = (f"{of['tokens']:,}", f"{of['targets']:,}", f"{of['padding']:,}", f"{of['excluded']:,}", f"{of['bytes']:,}")
        rows.append((*head, *counts, f"{planned.epochs:.4g}" if planned else "-", of["hash"][:12] + "…"))
    return align(rows, left=(0,))


def _in_log(first: int, end: int) -> str:
    """Steps [first, end) as log and console number them, from 1."""
    return f"step {end:,}" if end == first + 1 else f"steps {first + 1:,} to {end:,}"


def _shortened(changes: Sequence[str]) -> list[str]:
    """Changes with a stage that came or went as one of them, by its name; the lineage has each field."""
    lines: dict[str, None] = {}
    for change in changes:
        name = re.fullmatch(r"(stages\.\d+)\.name: (.*) → (.*)", change)
        if name and "(absent)" in name.groups():
            whole, old, new = name.groups()
            lines[f"{whole}: " + (f"'{new}' added" if old == "(absent)" else f"'{old}' taken away")] = None
            continue
        stage = re.match(r"stages\.\d+", change)
        if not (stage and "(absent)" in change and any(line.startswith(f"{stage[0]}: '") for line in lines)):
            lines[change] = None
    return list(lines)


def audit(run: Path, checkpoint: Path) -> tuple[list[str], list[str]]:
    """(what was consumed, in lines; disagreements, a line each) of one checkpoint of a run.

    Raises UserError for a missing or malformed file.
    """
    record = read_json(checkpoint / "checkpoint.json", "checkpoint record")
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int) or step < 0:
        raise UserError(f"{checkpoint / 'checkpoint.json'}: does not say its step; use another checkpoint")
    ledger = Ledger.from_json(read_json(checkpoint / "ledger.json", "ledger"), str(checkpoint / "ledger.json"))
    lineage = Lineage.from_json(read_json(checkpoint / "lineage.json", "lineage"), str(checkpoint / "lineage.json"))
    config, plan, problems = _followed(run, record)
    manifest_problems, seen = _manifest_problems(config, plan)
    problems += manifest_problems + _record_problems(checkpoint, record, plan) + lineage_problems(plan, lineage, step)
    problems += _chain_problems(run, plan, lineage)
    expected = expect(plan, lineage)
    problems += reconcile(expected, ledger)
    lines = [f"{checkpoint}: step {step:,} of {plan.num_steps:,}, plan {plan.fingerprint[:12]}…", "", *_table(expected, ledger), ""]
    lines += [f"branched off {entry.get('run')} at step {entry.get('step')}" for entry in lineage.branched]
    for interval in lineage.intervals:
        overrides = f" with {' '.join(interval.overrides)}" if interval.overrides else ""
        other = "" if interval.plan == plan.fingerprint else f" by the plan {interval.plan[:12]}…"
        lines.append(f"attempt {interval.attempt}: steps {interval.first:,} to {interval.end:,}{other}{overrides}")
        lines += [f"  changed on purpose at step {interval.first:,}: {change}" for change in _shortened(interval.changes)]
    lines += [f"skipped: steps {first:,} to {end:,}, in the log {_in_log(first, end)} ({why})" for first, end, why in lineage.skipped]
    lines.append(f"manifests compared: {seen} of {len(config.sources)}" + ("" if seen else " (no shards at the paths in config.yaml)"))
    return lines, problems


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when everything agrees, 1 when something does not, UserError for unreadable input."""
    parser = ArgumentParser(prog="codemix audit", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--checkpoint", metavar="STEP", help="checkpoint: its step, or its folder by name or path; default: the newest")
    arguments = parser.parse_args(argv)
    if not arguments.run.is_dir():
        raise UserError(f"{arguments.run}: no such run folder; check the path")
    lines, problems = audit(arguments.run, _checkpoint_folder(arguments.run, arguments.checkpoint))
    print("\n".join(lines))
    if problems:
        print("\n".join(["", f"MISMATCH: {len(problems)} disagreement{'s' if len(problems) > 1 else ''}", *problems]))
        return 1
    print("\nagreed: every window consumed is the planned one, as often as planned")
    return 0
