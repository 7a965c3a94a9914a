# `make demo` shows it, `make test` proves it. Everything is installed into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SEEDS ?= 20
WORLDS ?= 5000

.PHONY: install demo chaos browser sim gpu docs adapters test bytecode lint unit clean
install: $(VENV)/.installed

# uv installs in half a minute what takes pip several; pip stands in where uv cannot be had. Bytecode is compiled
# once: workers that compile torch for themselves at every start take half a minute to begin.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv || true
	@if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -e '.[dev]' -c constraints.txt; \
	else \
	  $(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt; \
	fi
	@touch $@

demo: install
	$(BIN)/antdt demo $(ARGS)

chaos: install
	$(BIN)/python -m pytest -n 2 --dist load -m dear
	$(BIN)/antdt chaos --seeds $(SEEDS) $(ARGS)

# The page in a real Chromium, which is Debian's package; without one, what is skipped says so. `make chaos` does it, too.
browser: install
	$(BIN)/python -m pytest -rs tests/integration/test_page_browser.py $(ARGS)

# Simulated worlds beyond those of the tests; ARGS: the first one.
sim: install
	$(BIN)/python -m tests.simulation search $(or $(ARGS),1000) $(WORLDS)

# All that needs a CUDA device, within eight minutes; the report is gpu.json.
gpu: install
	BENCH_DEVICE=cuda $(BIN)/python -m bench.gpu --json gpu.json $(ARGS)

# The documentation as a site, in build/docs; a warning is an error. What it needs is not among what the tests need.
docs: install
	@$(BIN)/python -c "import sphinx, myst_parser, furo" 2>/dev/null \
	  || $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[docs]' -c constraints.txt \
	  || $(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	$(BIN)/python -m sphinx -b html -W --keep-going -n docs build/docs
	$(BIN)/python -m pytest -m dear tests/integration/test_site.py $(ARGS)

# The adapters, with the frameworks that they are for: installed into the same environment, once. Of torchtitan the
# loaders are tried, without what its models need: its `datasets` cannot be beside the newest transformers.
adapters: $(VENV)/.adapters
	$(BIN)/python -m pytest -n 2 --dist load -m adapters $(ARGS)

$(VENV)/.adapters: $(VENV)/.installed constraints-adapters.txt
	@if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -e '.[dev,adapters-dev]' \
	    -c constraints.txt -c constraints-adapters.txt; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps torchtitan -c constraints-adapters.txt; \
	else \
	  $(BIN)/python -m pip install --quiet -e '.[dev,adapters-dev]' -c constraints.txt -c constraints-adapters.txt; \
	  $(BIN)/python -m pip install --quiet --no-deps torchtitan -c constraints-adapters.txt; \
	fi
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What waits runs beside what computes (tests/conftest.py), and each goes to whoever is free, but for those that share
# something dear. Many wait for processes rather than compute, and what is dearer, a broker and a process with torch, all
# share: four at a time keep two cores busy.
test: bytecode lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist load -m "not dear" $(ARGS)

# Bytecode is kept, whatever the environment says, and made while a core is idle beside mypy: each of the four would write
# its assertions anew, for more than two seconds.
bytecode: install
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only -qq >/dev/null 2>&1 &

unit: install
	$(BIN)/python -m pytest -m "not kafka and not dear" $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
