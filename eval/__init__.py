"""Evaluation of a Hugging Face directory, item by item; runs where no trainer is installed.

`codemix eval` is the face of this package (`eval.command.main`); its parts are `eval.tasks` (what can be
measured), `eval.causal` (any causal language model), one module per kind of task, and `eval.results`
(what is kept on disk). The package's name is the user's; it shadows a builtin only when the bare name is
imported, so write `from eval.tasks import …`.
"""

__all__: list[str] = []
