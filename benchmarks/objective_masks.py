"""The picture of docs/objectives.md, made by the code that trains: `python benchmarks/objective_masks.py docs/images/objective-masks.png`.

Two documents in one window under four objectives. A cell is filled where the input of its row sees that of its column.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from megatron_codemix.batches import Batch, WindowObjective, assemble
from megatron_codemix.config import Objective
from megatron_codemix.kernels import DocumentLayout
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

TEXTS = ["def f(a, b):\n    return a + b", "for x in y: x()"]
PANELS: dict[str, tuple[dict[str, Any], int]] = {
    "clm": ({}, 0),
    "fim, rate 1": ({"fim": {"rate": 1, "spm": 0.5}}, 30),
    "prefix, rate 1": ({"prefix": {"rate": 1}}, 14),
    "fim, rate 1, and prefix until <fim_middle>": ({"fim": {"rate": 1, "spm": 0.5}, "prefix": {"rate": 1, "until": "<fim_middle>"}}, 30),
}
COLORS = ListedColormap(["#ffffff", "#3b6ea5", "#e08a3c"])
"""Unseen, seen as it lies behind, seen although it lies ahead."""
LENGTH = 40


def batch(tokenizer: Tokenizer, settings: dict[str, Any], window: int) -> Batch:
    end = [tokenizer.end_of_text_id]
    stream = np.concatenate([part for text in TEXTS for part in (tokenizer.encode(text), end)])
    tokens = np.append(stream, np.resize(tokenizer.encode("# and the next\n"), LENGTH))[: LENGTH + 1].astype(np.uint16)[None]
    (made,) = assemble(
        tokens,
        np.ones(tokens.shape, np.uint8),
        end_of_text_id=tokenizer.end_of_text_id,
        token_num_bytes=tokenizer.token_num_bytes.astype(np.uint8),
        source_ids=np.zeros(1, np.int64),
        window_ids=np.array([window]),
        epochs=np.zeros(1, np.int64),
        micro_batch_size=1,
        objective=WindowObjective(Objective.model_validate(settings), tokenizer, ("code",), 0),
    )
    return made


def draw(axes: Axes, made: Batch, tokenizer: Tokenizer, title: str) -> None:
    names = {number: name for name, number in tokenizer.special_ids.items()}
    words = [names.get(number) or repr(tokenizer.decode([number]))[1:-1].replace(" ", "␣") for number in made.tokens[0].tolist()]
    layout = DocumentLayout(torch.stack((made.document_ids, made.prefix.long())))
    seen = layout.mask[0, 0].numpy()
    axes.imshow(seen * (1 + np.triu(np.ones_like(seen, int), 1)), cmap=COLORS, vmin=0, vmax=2, interpolation="nearest")
    places = np.arange(LENGTH)
    axes.set_xticks(places, words, rotation=90, fontsize=6.5, family="monospace")
    axes.set_yticks(places, words, fontsize=6.5, family="monospace")
    targets = made.target_mask[0].numpy()
    for label, is_target in zip(axes.get_yticklabels(), targets, strict=True):
        label.set_color("black" if is_target else "#c0392b")
    axes.set_xticks(places - 0.5, minor=True)
    axes.set_yticks(places - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.set_title(f"{title}: {int(targets.sum())} targets", fontsize=10)


def main(path: str) -> None:
    tokenizer = Tokenizer(train_tokenizer([f"{text}\n" for text in (*TEXTS, "# and the next")] * 60, 430))
    figure, grid = plt.subplots(2, 2, figsize=(13, 13.5), layout="constrained")
    for axes, (title, (settings, window)) in zip(grid.flat, PANELS.items(), strict=True):
        draw(axes, batch(tokenizer, settings, window), tokenizer, title)
    figure.suptitle(
        "Which input (column) each input (row) sees: blue behind it, orange ahead of it. Rows in red have no target.", fontsize=11
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
