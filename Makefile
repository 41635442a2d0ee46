# Three commands do everything on a fresh machine with Python >= 3.11:
#   make demo          the whole path on text from installed packages, to a launched recipe and a report
#   make test          lint, types and every test
#   make test-targets  exports run by the trainers that they are written for, sweeps logged to real trackers
# The first two install into .venv what they need and no more; 'make install' does only that for the first. The third has
# .venv-targets of its own, since the trainers need other versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-tests
TARGETS := .venv-targets
TARGETS_STAMP := $(TARGETS)/.installed

.PHONY: install demo test pytest test-targets lint format reference docs notebooks clean

# torch first and pinned: without the pin pip may choose another build of several gigabytes
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing decaylaws with PyTorch into $(VENV); this takes a few minutes and about 2 GB of disk."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	@echo "PyTorch is there. Installing the other packages."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	@touch $(STAMP)
	@echo "Installed. Next: make demo, or $(BIN)/decaylaws init my-study --template quick"

$(TEST_STAMP): $(STAMP)
	@echo "Installing what the tests, ruff, mypy and the site need on top."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint,postgres,docs]'
	@touch $(TEST_STAMP)

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/decaylaws demo demo-study

# one thread a process: two processes of tests share the cores, a file at a time, in the order of tests/conftest.py
# lint first; with 'make -j2 test', as CI runs it, beside the tests, for mypy has one process and would leave a core idle
test: lint pytest

pytest: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

# all of it pinned and without a resolver: the trainers' own pins contradict each other
$(TARGETS_STAMP): tests/exporters/targets.txt constraints.txt
	$(PYTHON) -m venv $(TARGETS)
	$(TARGETS)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(TARGETS)/bin/python -m pip install --quiet --no-deps -r tests/exporters/targets.txt -e .
	touch $(TARGETS_STAMP)

# Each run ends with the list of what was skipped and why. Moments have a process of their own: Megatron-Bridge is
# imported with a stand-in for Transformer Engine, of which Megatron-core then builds its layers.
MOMENTS := tests/exporters/test_targets_moments.py
test-targets: $(TARGETS_STAMP)
	OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu $(TARGETS)/bin/python -m pytest -q \
		$(filter-out $(MOMENTS),$(wildcard tests/exporters/test_targets*.py)) $(wildcard tests/proxy_runs/test_targets*.py)
	OMP_NUM_THREADS=1 $(TARGETS)/bin/python -m pytest -q $(MOMENTS)

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the pages that the code already states: commands and settings
reference: $(STAMP)
	$(BIN)/python docs/generate.py

# strict: a broken link or a missing page is an error
docs: $(TEST_STAMP)
	$(BIN)/python -m mkdocs build --strict
	@echo "Open build/site/index.html"

format: $(TEST_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: $(TEST_STAMP)
	$(BIN)/python notebooks/run.py

clean:
	rm -rf $(VENV) $(TARGETS) demo-study build dist
