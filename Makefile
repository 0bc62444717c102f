# make demo and make test need no network once installed.

PYTHON ?= python3
VENV := .venv

.PHONY: demo test lint install clean

demo: install
	$(VENV)/bin/reelgym compare --preset quick

# Small tensors run faster on one thread than on two that wait for each other: one process of one thread for each core.
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(VENV)/bin/python -m pytest -q -n auto --dist worksteal

lint: install .typing/reelgym
	$(VENV)/bin/ruff check
	MYPYPATH=.typing $(VENV)/bin/mypy -p reelgym

install:
	@.ci/install $(PYTHON) $(VENV)

# The repository root is the package: mypy finds it by its name through this link.
.typing/reelgym:
	@mkdir -p .typing && ln -sfn .. $@

clean:
	rm -rf build dist .typing .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
