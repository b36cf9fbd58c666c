# `make demo` and `make test` are all a newcomer needs; both install what they use into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Your own photos: make demo PHOTOS=~/Pictures
PHOTOS ?=

.PHONY: install demo test check clean

install: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/mmgem demo --out $(OUT) $(if $(PHOTOS),--photos "$(patsubst ~/%,$(HOME)/%,$(PHOTOS))")

test: install
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .mypy_cache
