# make setup   the virtual environment .venv with the tested versions (once; then at once)
# make demo    the whole path on the embedded data, in about six minutes: ends with a report to open
# make test    all tests
# make quick   a part of them in about a minute, for work under way
# make coverage  the lines and branches that tests reach, in every process that they begin
# make check   format, lint, import direction, dead code, types
# make docs    the API reference, from the docstrings: open build/api/index.html
# A Python other than the first 3.12 or 3.11 on the path: make setup PYTHON=/path/to/python

PYTHON ?=
WORKERS ?= 3
BIN := .venv/bin
QUICK := tests/tools tests/retrain tests/local_learning/test_heads.py tests/local_learning/test_decoupling.py \
  tests/supernet/test_paths.py tests/search/test_evolution.py tests/test_contributing.py tests/test_two_faces.py \
  tests/test_idle.py tests/test_configs.py --ignore tests/tools/chapters --ignore tests/tools/test_layout.py --ignore tests/tools/kernels
STAMP := .venv/.installed

COVERAGE := $(BIN)/python -m coverage

.PHONY: setup demo test quick coverage check docs format clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.12 python3.11 python3 python; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	    echo "setting up .venv with $$("$$python" --version); this takes a minute or two"; \
	    [ -x $(BIN)/python ] || "$$python" -m venv .venv || exit 1; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' || exit 1; \
	    touch $@; exit 0; \
	  fi; \
	done; \
	echo "make setup needs Python 3.11 or 3.12 with venv; name one by PYTHON=/path/to/python" >&2; exit 1

demo: $(STAMP)
	$(BIN)/python demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

quick: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m 'not slow' $(QUICK)

coverage: $(STAMP)
	rm -rf build/coverage
	mkdir -p build/coverage
	$(COVERAGE) run -m pytest -n $(WORKERS) --dist worksteal
	$(COVERAGE) combine --quiet
	$(COVERAGE) report --skip-covered --precision 2

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/mypy

# The one warning that is let pass is of a library, which makes it when it is imported.
docs: $(STAMP)
	rm -rf build/api
	$(BIN)/python -W error -W 'ignore:`torch.jit.script` is deprecated:DeprecationWarning' -m pdoc --docformat google --template-directory docs --output-directory build/api \
	  tools local_learning supernet search retrain

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
