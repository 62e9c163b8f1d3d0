# Everything is installed into .venv, at the versions of constraints.txt. Paths are relative, so
# that a checkout may lie in a directory whose name has spaces.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Two processes; what a file's tests share is made in one of them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

EXTRAS_demo := offline
EXTRAS_test := offline,quant,ray,test
EXTRAS_lint := offline,quant,test,dev
EXTRAS_check := offline,quant,ray,test,dev,trackers,docs
EXTRAS_docs := docs
EXTRAS_bench := offline

# Warnings of these versions that later ones do not give.
OLD := -W 'ignore:Could not find a config file' -W ignore:Tip:FutureWarning \
	-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

.PHONY: help demo test lint audit check floors docs bench

help: ## Show the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile
	@echo "ARGS='…' is passed on by demo and test; PYTHON=… chooses the interpreter of a new .venv."

demo: .venv/.installed-demo ## Compare LoRA ranks on the embedded model and task; no model hub needed
	@$(BIN)/rankwise demo $(ARGS)

test: .venv/.installed-test ## Run the tests, but not the slow ones
	$(PYTEST) $(ARGS)

lint: .venv/.installed-lint ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: .venv/.installed-lint ## Ask whether a pinned version is known to be vulnerable
	$(BIN)/python .ci/audit.py

check: .venv/.installed-check lint audit ## Check everything: lint, pinned versions, then all tests, slow ones too
	$(PYTEST) -m ''

floors: .venv-floors/.installed ## Run the tests with the oldest dependencies that pyproject.toml allows
	.venv-floors/bin/python -m pytest -n 2 --dist loadfile $(OLD) $(ARGS)

# -E: some pages are made of help texts, docstrings and reports, which Sphinx does not watch.
docs: .venv/.installed-docs ## Build the documentation into docs/_build
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs docs/_build
	@echo docs/_build/index.html

bench: .venv/.installed-bench ## Measure start-up, and training's speed in one short round, on this machine's CPU
	@mkdir -p runs
	$(BIN)/python -m benchmarks.speed.startup --out runs/startup.json
	$(BIN)/python -m benchmarks.speed.throughput --rounds 1 --examples 64 --out runs/throughput_cpu.json

# torch goes first and alone: whatever else is asked for then resolves against the pinned one.
.venv/.installed-%: .venv/.created constraints.txt pyproject.toml
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS_$*)]'
	@touch $@

.venv-floors/.installed: pyproject.toml constraints.txt
	'$(PYTHON)' -m venv .venv-floors
	'$(PYTHON)' .ci/floors.py > .venv-floors/floors.txt
	.venv-floors/bin/python -m pip install -c constraints.txt torch
	.venv-floors/bin/python -m pip install -c .venv-floors/floors.txt -e '.[$(EXTRAS_test)]'
	@touch $@

.venv/.created:
	@command -v '$(PYTHON)' >/dev/null || { \
		echo "Rankwise needs Python 3.11 or newer, and there is no $(PYTHON); say which: make PYTHON=…" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Rankwise needs Python 3.11 or newer, and $(PYTHON) is $$('$(PYTHON)' -V); say which: make PYTHON=…" >&2; exit 1; }
	'$(PYTHON)' -m venv .venv
	@touch $@
