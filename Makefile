# NextLoom: `make quickstart` and `make test` set up what is missing and need nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BROWSER := $(VENV)/.browser
# CPU wheels of torch instead of CUDA ones: PIP_EXTRA=--extra-index-url=https://download.pytorch.org/whl/cpu make setup
PIP_EXTRA ?=

.PHONY: setup quickstart test lint proofs bench bench-peers clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_EXTRA) -e '.[samples,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'brisque>=0.2'  # see docs/dependencies.md
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true  # pip would compile one file at a time
	touch $@

quickstart: $(STAMP)
	$(BIN)/python -P -m nextloom.quickstart

# a browser for tests of the report page; tried once, and where it cannot be had those tests are skipped with a reason
$(BROWSER):
	@mkdir -p $(VENV)
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq -o Acquire::http::Timeout=20 && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	fi; command -v chromium >/dev/null || echo "no chromium: tests of the report page in a browser will be skipped"
	touch $@

# most of a test of the engine is waiting for processes to start, so two files run at a time
test:
	$(MAKE) --no-print-directory -j 2 $(STAMP) $(BROWSER)
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

proofs: $(STAMP)
	$(BIN)/python -m pytest -m proof -s

bench: $(STAMP)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

bench-peers: $(STAMP)
	for file in benchmarks/*.py; do $(BIN)/python $$file --peers || exit 1; done

clean:
	rm -rf $(VENV) data
