"""codemix: pretraining language models on declared mixtures of code and text.

This package imports nothing by itself, so that `codemix --help` is instant and that the data and
evaluation stages run where no trainer is installed.
"""
