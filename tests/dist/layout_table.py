"""Every layout of layouts.yaml against one process: starts the launches, compares, prints the table.

    python tests/dist/layout_table.py                            print
    python tests/dist/layout_table.py --write docs/layouts.md    and replace the tables of that page: every family in every layout,
                                                                 elsewhere only with CODEMIX_SOAK=1
    python tests/dist/layout_table.py --golden                   and keep one process's losses in golden.json for this machine's kind
    python tests/dist/layout_table.py --out FOLDER               and keep what was measured there (rows.json)
    python tests/dist/layout_table.py --sections deepspeed deepspeed_bf16      these sections of layouts.yaml, and their tables, alone

Golden losses change when what a run computes changes; a change of them says so in the changelog.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron_codemix.files import write_json
from megatron_codemix.pieces import EXP_AVG, PARAM, PieceReader

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
COLUMNS = {
    "loss": "largest difference of a loss over 20 steps, nats",
    "norm": "largest relative difference of a gradient norm",
    "gradient": "largest difference of an element of the first step's gradient, relative to the largest of its tensor",
    "evaluation": "largest difference of three evaluations (before, after one step, after all), nats",
    "documents": "largest difference of a log-probability between a document in a packed window and the document alone, nats",
}
"""What a row says of a layout."""


SECTIONS = ("layouts", "families", "bf16", "deepspeed", "deepspeed_bf16", "dropout")


def launch(ranks: int, out: Path, sections: Sequence[str] = SECTIONS) -> None:
    """Run the layouts of this many processes in one launch. Raises RuntimeError with the end of its output."""
    start = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *start, str(HERE / "layout_worker.py"), str(out), f"^({'|'.join(sections)}): "]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"{ranks} process(es)"):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise RuntimeError(f"the launch of {ranks} process(es) failed:\n{''.join(lines)[-8000:]}")


def compare(out: Path, sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """What rows.json holds: golden key and losses, a row for each layout of a section, whether recompute changed a bit."""
    declared = yaml.safe_load((HERE / "layouts.yaml").read_text())
    if os.environ.get("CODEMIX_SOAK") != "1":
        declared["families"] = {name: declared["families"][name] for name in declared["families_in_ci"]}
    if importlib.util.find_spec("deepspeed") is None:
        declared |= {"deepspeed": {}, "deepspeed_bf16": {}}
    found = {ranks: json.loads((out / f"ranks-{ranks}.json").read_text()) for ranks in (1, 2, 4)}
    rows: dict[str, Any] = {"key": machine()}
    if "layouts" in sections:
        rows["losses"] = found[1]["layouts"]["{}"]["losses"]
    for section in sections:
        if section == "dropout":
            continue
        rows[section] = {}
        for name, layout in declared[section].items():
            reference = found[1][section][json.dumps(layout.get("model", {}) | layout.get("run", {}), sort_keys=True)]
            rows[section][name] = {"ranks": layout["ranks"], **row(found[layout["ranks"]][section][name], reference)}
    if "dropout" not in sections:
        return rows
    rows["dropout"] = {}
    for ranks in (1, 2, 4):
        results = found[ranks].get("dropout", {})
        for name, result in results.items():
            without = results[f"{name.split(':')[0]}: none"]
            same = all(result[key] == without[key] for key in ("losses", "norms"))
            rows["dropout"][name] = {"ranks": ranks, "same_bits": same, "replicas": result["replicas"]}
    return rows


def row(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float | None]:
    """The differences of a layout from one process, and those within it."""

    def largest(key: str) -> float:
        return max(abs(a - b) for a, b in zip(result[key], reference[key], strict=True))

    return {
        "loss": largest("losses"),
        "norm": max(abs(a - b) / b for a, b in zip(result["norms"], reference["norms"], strict=True)),
        "gradient": states_differ(PieceReader(result["folder"]), PieceReader(reference["folder"]), EXP_AVG),
        "weights": states_differ(PieceReader(result["folder"]), PieceReader(reference["folder"]), PARAM),
        "evaluation": largest("evaluations"),
        "probabilities": largest("probabilities"),
        "documents": result["documents"],
        "replicas": result["replicas"],
    }


def states_differ(one: PieceReader, other: PieceReader, kind: str) -> float:
    """Largest difference of an element, relative to the largest of its tensor; the readers refuse what is not covered once."""
    assert one.keys() == other.keys()
    differences = []
    for key in other.keys():  # noqa: SIM118 - a method of the reader, which is no mapping
        wanted = other.whole(key, kind)
        differences.append(((one.whole(key, kind) - wanted).abs().max() / wanted.abs().max()).item())
    return max(differences)


def machine() -> str:
    """What golden losses depend on besides the code: the release of torch, the instructions and the maker of the processor."""
    makers = {line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("vendor_id")}
    return f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, {'/'.join(sorted(makers)) or 'unknown'}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, one line per layout."""
    lines = ["| layout | processes | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for name, values in rows.items():
        lines.append(
            f"| {name} | {values['ranks']} | " + " | ".join("—" if values[key] is None else f"{values[key]:.1e}" for key in COLUMNS) + " |"
        )
    return "\n".join(lines)


def tables(rows: dict[str, Any]) -> dict[str, str]:
    """Name in the page's markers → Markdown, of the sections that were measured."""
    legend = "\n".join(f"- `{key}`: {meaning}" for key, meaning in COLUMNS.items())
    measured = f"Measured with {rows['key'].split(', ')[0]} on CPUs (gloo)."
    found = {name: table(rows[name]) for name in ("families", "bf16", "deepspeed", "deepspeed_bf16") if name in rows}
    if "layouts" in rows:
        found["fp32"] = f"{measured}\n\n{legend}\n\n{table(rows['layouts'])}"
    if "dropout" in rows:
        found["dropout"] = _dropout_table(rows["dropout"])
    return found


def _dropout_table(rows: dict[str, Any]) -> str:
    ways = list(dict.fromkeys(name.split(": ")[1] for name in rows))
    lines = ["| layout | " + " | ".join(ways[1:]) + " |", "|---|" + "---|" * (len(ways) - 1)]
    for name in dict.fromkeys(name.split(": ")[0] for name in rows):
        cells = ("same bits" if rows[f"{name}: {way}"]["same_bits"] else "DIFFERENT" for way in ways[1:])
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(page: Path, rows: dict[str, Any]) -> None:
    """Replace what stands between `<!-- NAME: … -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, content in tables(rows).items():
        before, marker, rest = text.partition(f"<!-- {name}: written by tests/dist/layout_table.py -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert marker and end, f"{page}: has no place for the table '{name}'"
        text = f"{before}{marker}{content}\n{end}{after}"
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--compare-only", action="store_true", help="take what lies in --out")
    arguments = parser.parse_args()
    if arguments.write:
        os.environ["CODEMIX_SOAK"] = "1"  # the page has every family's layouts
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        if not arguments.compare_only:
            for ranks in (1, 2, 4):
                launch(ranks, out, arguments.sections)
        rows = compare(out, arguments.sections)
        write_json(out / "rows.json", rows)
    print("\n\n".join(tables(rows).values()))
    if arguments.write:
        write(arguments.write, rows)
    if arguments.golden:
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        write_json(GOLDEN, known | {rows["key"]: rows["losses"]})


if __name__ == "__main__":
    main()
