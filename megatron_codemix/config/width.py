"""Width transfer: learning rate and initial weights tuned on a narrow model, used on a wide one (µP)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_codemix.config.section import Count, Section, is_count, whole


class WidthTransfer(Section):
    """Maximal update parametrisation for AdamW (Yang et al. 2022, arXiv 2203.03466, table 3): `learning_rate.peak` and `model.init_std`
    are those of a model `base_hidden_size` wide, and hold for this one.

    With m = hidden_size / base_hidden_size, matrices inside the layers begin with a standard deviation smaller by √m and learn m times
    slower, the output matrix begins m times smaller and learns m times slower; embeddings, norms and biases stay. What a step of
    weight decay takes away stays as well. The widths of both models differ in the number of heads, not in head_size, so attention's
    1/√head_size needs no change; feed-forward and key/value heads grow with hidden_size.
    """

    base_hidden_size: Count = Field(ge=1)
    """hidden_size of the model that was tuned."""


def width_problems(raw: dict[str, Any]) -> list[str]:
    """What a run with `width_transfer` asks of its model; raw: the run."""
    model = raw.get("model")
    if not isinstance(raw.get("width_transfer"), dict) or not isinstance(model, dict):
        return []
    problems = []
    if model.get("tied_embeddings", False) is not False:
        problems.append(
            "width_transfer: a tied matrix cannot scale as an embedding and as an output matrix at once; set model.tied_embeddings to false"
        )
    base, width = whole(raw["width_transfer"].get("base_hidden_size")), whole(model.get("hidden_size"))
    if is_count(base) and is_count(width) and width % base and base % width:
        told = f"neither {base} nor model.hidden_size {width} divides the other; change one of them"
        problems.append(f"width_transfer.base_hidden_size: {told}")
    return problems
