# The two commands of a newcomer: `make demo` and `make test`. Each makes the environment it needs in .venv.
SHELL := /bin/bash
BIN := .venv/bin
export CUDA_DEVICE_MAX_CONNECTIONS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check env soak format clean

demo: env
	@$(BIN)/codemix demo --output demo

test: env
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What to run before each commit: formatting, types, import contracts, and the tests that need no trainer (about two minutes).
check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests/unit

# What takes longer than CI should: 50 kills of runs in five layouts, every family in every layout, all reference solutions, ten times the
# examples of every property test. Tests that are the same either way are `make test`'s.
soak: env
	CODEMIX_SOAK=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/dist/test_layouts.py tests/dist/test_faults.py tests/unit/eval/code/test_python_problems.py
	CODEMIX_SOAK=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m hypothesis tests/unit

env:
	@launch_scripts/make_env.sh .venv

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo
