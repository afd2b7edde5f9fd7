"""Presets: model shapes and studies that ship with codemix, as YAML to start from.

A study preset is a text with three holes: $data (the output of `codemix prep shards`), $output, and
$model, the lines of a model shape. It stays a text, so that its comments reach the user.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from string import Template

from megatron_codemix.errors import UserError

_PRESETS = files("megatron_codemix") / "presets"


_OTHER_MODEL = """# The model here is {model}. What is said below of the model and of numbers that go with it (learning rate, batch,
# memory) was meant for {proposed}: look at them again.
"""


def _names(kind: str) -> list[str]:
    return sorted(
        item.name.removeprefix(f"{kind}-").removesuffix(".yaml") for item in _PRESETS.iterdir() if item.name.startswith(f"{kind}-")
    )


def study_names() -> list[str]:
    """Names of the study presets."""
    return _names("study")


def model_names() -> list[str]:
    """Names of the model shapes."""
    return _names("model")


def _text(kind: str, name: str, known: list[str]) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "one of: " + ", ".join(known)
        raise UserError(f"no {kind} preset '{name}'; {hint}")
    return (_PRESETS / f"{kind}-{name}.yaml").read_text("utf-8")


def model_text(name: str) -> str:
    """The YAML of a model shape (the `model` section of a run). Raises UserError for an unknown name."""
    return _text("model", name, model_names())


def study_text(name: str, *, data: Path, output: Path, model: str | None = None) -> str:
    """The YAML of a study preset with its holes filled; `model` replaces the shape it proposes.

    Raises UserError for an unknown preset or model shape.
    """
    text = _text("study", name, study_names())
    first, _, rest = text.partition("\n")
    proposed = first.removeprefix("# model: ").strip()
    shape = model_text(model or proposed).rstrip().splitlines()
    if model not in (None, proposed):
        rest = _OTHER_MODEL.format(model=model, proposed=proposed) + rest
    holes = {"data": str(data), "output": str(output), "model": "\n".join(f"    {line}".rstrip() for line in shape).lstrip()}
    return Template(rest).substitute(holes)


def describe_presets() -> str:
    """Names and first lines, for people."""
    lines = ["studies (codemix study init NAME OUT.yaml):"]
    for name in study_names():
        summary = _text("study", name, study_names()).splitlines()[1].removeprefix("# ")
        lines.append(f"  {name:<28} {summary}")
    lines.append("model shapes (--model NAME):")
    for name in model_names():
        lines.append(f"  {name:<28} {model_text(name).splitlines()[0].removeprefix('# ')}")
    return "\n".join(lines)
