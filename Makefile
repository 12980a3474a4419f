# `make demo` and `make test` are all the set-up there is: each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       digits -> supernet -> search for three latencies -> three exported subnets -> report"
	@echo "make test       the quick tests          make test-slow  the end-to-end and exhaustive ones"
	@echo "make lint       ruff, mypy, import-linter make format     ruff format"
	@echo "make bench      the benchmarks           make clean      remove caches, .venv and runs/quickstart"

# A stamp names the extras that are installed; it is made anew when the dependencies change.
$(VENV)/.export: setup.cfg
	@echo "installing into $(VENV) (torch alone is several GB; this takes a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	touch $@

$(VENV)/.dev: setup.cfg
	@echo "installing into $(VENV) (torch alone is several GB; this takes a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export,dev]'
	touch $@ $(VENV)/.export

demo: $(VENV)/.export
	$(BIN)/quasar run experiments/quickstart.yaml --overwrite

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	for script in experiments/benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf $(VENV) runs/quickstart build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
