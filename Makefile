# `make demo` and `make test` are all a newcomer needs; both install what they use into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Your own photos: make demo PHOTOS=~/Pictures
PHOTOS ?=

# All that is installed has a known sha256. PyTorch without CUDA where that build is to be had, else that of PyPI.
LOCKED := --quiet --disable-pip-version-check --require-hashes
define installed
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(LOCKED) -r $(1) -r constraints/torch-cpu.lock 2> /dev/null || $(BIN)/pip install $(LOCKED) -r $(1) -r constraints/torch.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
endef

.PHONY: install run demo test check tiny adopt-shapes lock licences sbom clean

# Everything, for who changes the code.
install: $(VENV)/.done

$(VENV)/.done: pyproject.toml requirements.lock constraints/torch.lock
	$(call installed,requirements.lock)

# What the commands, the server and its page need; nothing, where everything is installed.
run: $(if $(wildcard $(VENV)/.done),install,$(VENV)/.run)

$(VENV)/.run: pyproject.toml constraints/run.lock constraints/torch.lock
	$(call installed,constraints/run.lock)

demo: run
	$(BIN)/mmgem demo --out $(OUT) $(if $(PHOTOS),--photos "$(patsubst ~/%,$(HOME)/%,$(PHOTOS))")

test: install
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The default model from base weights, by its recipes, from the data that they name: half a day on two CPU cores. Stopped
# and started again it goes on.
DATA ?= ../shared/data
CALIBRATED := flickr8k world/imagen200 world/caltech101 world/coco
tiny: install
	$(BIN)/mmgem pull tiny
	$(BIN)/mmgem train recipes/world.toml
	$(BIN)/mmgem train recipes/world_more.toml
	$(BIN)/mmgem export runs/world_more/model runs/tiny --average runs/world/model --alpha 0.3 --pca-rotate $(DATA)/world
	$(BIN)/mmgem calibrate runs/tiny --split dev $(CALIBRATED:%=--data $(DATA)/%/captions.jsonl)

# `mmgem adopt` on random weights of the exact shapes of the commonest checkpoints: minutes, 6 GB.
adopt-shapes: install
	$(BIN)/python benchmarks/adopt_shapes.py

# Resolves anew what pyproject.toml and constraints.txt ask for; needs uv.
lock:
	$(PYTHON) constraints/lock.py

licences: install
	$(BIN)/python constraints/licences.py

# What is installed, with versions, hashes and licences, as a CycloneDX bill of materials.
sbom: install
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o sbom.json $(BIN)/python

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .mypy_cache
