"""Evaluation of a Hugging Face directory; runs where no trainer is installed.

The package's name is the user's; it shadows a builtin only as `import eval`, so write `from eval.tasks import …`.
"""
