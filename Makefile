# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check install clean

demo: install          ## train a teacher on bundled digits, choose hints, distil students, write demo-out/report.html
	rm -rf demo-out
	$(BIN)/keyhole demo --out demo-out

test: install check    ## lint, types, import contracts, then all tests, doctests and README snippets
	$(BIN)/python -m pytest $(or $(PYTEST),--cov=keyhole --cov-report=term:skip-covered --cov-fail-under=93)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[timm,faces,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out
