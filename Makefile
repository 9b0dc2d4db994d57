# Needs Python 3.11 or newer, make and git. Every target makes what it needs; nothing is installed elsewhere
# than in .venv and in the cache folder (LAUNCH_CACHE_DIR).
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
LAUNCH := $(BIN)/launch
DEMO ?= demo

.PHONY: demo test check bench bench-cost bench-train clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(BIN)/.installed  ## fine-tune a real language model here and show it before and after
	@test -e $(DEMO)/launch.yaml || $(LAUNCH) init $(DEMO)
	$(LAUNCH) run $(DEMO)/launch.yaml --yes
	@echo; echo "launch is $(BIN)/launch; to type it as it stands above: . $(BIN)/activate"

test: $(BIN)/.installed  ## every test, with no way out of this machine
	$(BIN)/python -m tests.run

check: $(BIN)/.installed  ## style, types, import rules, lazy imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

bench: $(BIN)/.installed  ## start-up and record, as ratios of one run; what the cost preview itself costs
	@missed=0; for one in startup cost_speed record tokens; do $(BIN)/python -m bench.$$one || missed=1; done; \
	exit $$missed

RUNS ?= ../shared/data/throughput.csv
bench-cost: $(BIN)/.installed  ## the estimate of time and memory against measured public runs
	@if test -e $(RUNS); then $(BIN)/python -m bench.cost_accuracy $(RUNS); \
	else echo "skipped: the measured runs are not at $(RUNS); make bench-cost RUNS=file.csv"; fi

TICKETS ?= ../shared/data/banking77
bench-train: $(BIN)/.installed  ## training speed and quality against other trainers, alternating
	@if test -e $(TICKETS)/train.csv; then $(BIN)/python -m bench.train $(TICKETS); \
	else echo "skipped: banking77 is not at $(TICKETS); make bench-train TICKETS=folder"; fi

clean:
	rm -rf .venv build dist
