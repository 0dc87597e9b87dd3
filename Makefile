# make demo | test | test-web | test-aarch64 | check | docs | clean     Everything runs in .venv, made on demand; nothing else is touched.
# PYTHON=python3.12 picks another interpreter, VENV=path another place.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= cpu,openvino,rtx,video,export,train,dev
OUT ?= out

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUNDLE := $(OUT)/small.bundle
CHOSEN := $(OUT)/small.chosen.bundle
CHECKPOINT := checkpoints/small
CHECKPOINT_FILES := $(shell find $(CHECKPOINT) -type f 2>/dev/null)
EXPORT_FILES := $(shell find t2v_edge export/t2v_export devices -type f -name '*.py' -o -type f -name '*.toml' 2>/dev/null)

DEMO_FIRST := 一个人正在打篮球
DEMO_THEN := a woman in a red shirt and blue jeans is dancing

.PHONY: demo test test-web test-aarch64 check docs lint types clean install help

help:
	@sed -n 's/^# //p' Makefile | head -2

install: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: try make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "the toolchain needs Python 3.10 to 3.13, $(PYTHON) is $$($(PYTHON) -V 2>&1): try make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	@touch $@

$(BUNDLE)/manifest.json: $(CHECKPOINT_FILES) $(EXPORT_FILES) | $(STAMP)
	@test -f $(CHECKPOINT)/config.json || { echo "$(CHECKPOINT) is not here: clone the whole repository" >&2; exit 1; }
	@mkdir -p $(OUT)
	$(BIN)/t2v-edge export $(CHECKPOINT) --recipe fast --device cpu -o $(BUNDLE)
	@touch $@

# The variants that are the defaults, and no others: what is shipped.
$(CHOSEN)/manifest.json: $(CHECKPOINT_FILES) $(EXPORT_FILES) | $(STAMP)
	@mkdir -p $(OUT)
	$(BIN)/t2v-edge export $(CHECKPOINT) --recipe fast --ship chosen --device cpu -o $(CHOSEN)
	@touch $@

# Six seconds of each caption at the model's own 16 frames a second.
demo: $(STAMP) $(BUNDLE)/manifest.json
	$(BIN)/t2v-edge run $(BUNDLE) "$(DEMO_FIRST)" --then 6 "$(DEMO_THEN)" --seconds 12 --seed 7 \
	  -o $(OUT)/demo.mp4 --sheet $(OUT)/demo.png
	@echo "$(OUT)/demo.mp4 and $(OUT)/demo.png are done"

# Each process loads torch, so there are four at most.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

# The page and the examples in headless Chromium. What npm installs goes into $(OUT)/web.
WEB := $(OUT)/web
CHROMIUM ?= $(or $(shell command -v chromium chromium-browser google-chrome 2>/dev/null | head -1),/usr/bin/chromium)

test-web: $(STAMP) $(WEB)/.installed
	@test -x "$(CHROMIUM)" || { echo "$(CHROMIUM) is not here: apt install chromium, or make test-web CHROMIUM=PATH" >&2; exit 1; }
	CHROMIUM=$(CHROMIUM) T2V_EDGE_NODE_MODULES=$(abspath $(WEB)/node_modules) $(BIN)/python -m pytest tests/web tests/examples $(PYTEST_ARGS)

$(WEB)/.installed: tests/web/package.json tests/web/package-lock.json tests/web/.npmrc
	@command -v npm >/dev/null || { echo "npm is not here: install Node.js 20 or later with npm" >&2; exit 1; }
	@mkdir -p $(WEB)
	@cp $^ $(WEB)/
	cd $(WEB) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

# The wheel and the INT8 bundle in an arm64 userland under emulation: minutes, as root (see tests/aarch64/run.sh).
test-aarch64: $(STAMP)
	@tests/aarch64/run.sh --check
	@$(MAKE) --no-print-directory $(CHOSEN)/manifest.json
	PYTHON=$(abspath $(BIN))/python tests/aarch64/run.sh $(CHOSEN)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# Pages that are written from the code.
docs: $(STAMP)
	$(BIN)/python docs/make_recipes.py docs/recipes.md

clean:
	rm -rf $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +
