"""Rows that are no text yet — notebooks, commits, issues, questions — as text a model can learn from."""

from data_prep.rendering.commit import render_commit
from data_prep.rendering.notebook import render_notebook
from data_prep.rendering.shared import Unrenderable
from data_prep.rendering.thread import render_issue, render_question

__all__ = ["Unrenderable", "render_commit", "render_issue", "render_notebook", "render_question"]
