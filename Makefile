# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# in two calls: compiled networks and the runtimes of face models in one process have crashed it when it started another.
# A test computes on one thread, so that as many run at once as there are cores; those of a file share what they made.
RUN := -n auto --maxprocesses 4 --dist loadfile --cov=keyhole
FACES := tests/faces tests/students tests/test_cli_faces.py tests/test_exporting.py
REST := tests src $(addprefix --ignore=,$(FACES))

.PHONY: demo test check install clean

demo: install          ## train a teacher on bundled digits, choose hints, distil students, write demo-out/report.html
	rm -rf demo-out
	$(BIN)/keyhole demo --out demo-out

test: install check    ## lint, types, import contracts, then all tests, doctests and README snippets
	$(if $(PYTEST),$(BIN)/python -m pytest $(PYTEST),$(BIN)/python -m pytest $(RUN) --cov-report= $(FACES))
	$(if $(PYTEST),,$(BIN)/python -m pytest $(RUN) --cov-append --cov-report=term:skip-covered --cov-fail-under=93 $(REST))

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[timm,faces,export,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out
