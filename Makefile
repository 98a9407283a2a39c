# make demo · make test · make lint · make smoke · make examples · make docs    Needs Python 3.11+ with venv and pip.
# PYTHON=python3.12 chooses the interpreter, VENV=DIR where the environment goes,
# VENV_FLAGS=--system-site-packages keeps a PyTorch that is installed already.

PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test smoke examples docs lint install install-dev clean help

help:
	@sed -n '1,3s/^# //p' Makefile

# The environment, made once.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; choose another with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@touch $@

# Installed again only when what is to be installed changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "installing; PyTorch is large, so this may take some minutes"
	$(PIP) install --quiet --editable . --constraint constraints.txt
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "installing; PyTorch is large, so this may take some minutes"
	$(PIP) install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/convoy train lenet5 --data digits --strategy pipelined --stages 2 \
		--epochs 15 --batch-size 32 --lr 0.02 --lr-schedule one-cycle --weight-decay 5e-3

test: install-dev
	$(BIN)/python -m pytest $(ARGS)

smoke: install-dev
	$(BIN)/python -m pytest -m smoke $(ARGS)

# Every Python example of the README and the docs, and every script in examples/.
examples: install-dev
	$(BIN)/python -m pytest -m slow tests/test_examples.py $(ARGS)

# The pages of docs/ as a site. Warnings, such as a link that leads nowhere, are errors.
docs: install-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
