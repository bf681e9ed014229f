# make run    the default run, from nothing to runs/demo/report.html
# make test   all tests, in the same environment (.venv)
# make check  style and types alone (make test runs them too)
# make clean  remove the environment and caches; runs/ stays
#
# PYTHON=python3.12   another interpreter for a new .venv
# PIP_ARGS=...        more arguments for pip, for example an index that offers a CPU build of torch
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
RUN ?= runs/demo
STAMP = .venv/.installed

.PHONY: run test check format clean env

run: $(STAMP)
	.venv/bin/sae-emotions run train/smollm2-135m.yaml --out $(RUN)

test: $(STAMP)
	.venv/bin/python -m pytest $(PYTEST_ARGS)

check: $(STAMP)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: $(STAMP)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

env: $(STAMP)

# The stamp is touched last, so that an interrupted installation starts again. Of some 20,000 modules installed a run
# imports few: --no-compile leaves each to be compiled when it is first imported.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)' here; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "'$(PYTHON)' is older than Python 3.11; name a newer one: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make environments; install its venv package (Debian: apt install python3-venv)" >&2; exit 2; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || { \
	  echo "Making the environment .venv (the first time takes some minutes)"; $(PYTHON) -m venv --clear .venv; }
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-compile $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $(STAMP)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
