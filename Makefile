# make demo       shatters the shipped MNIST generator and leaves a report
# make demo-gan   trains a partition-guided GAN on a ring of eight modes and leaves a report
# make docs       builds the documentation into build/site
# make test       lints, type-checks and runs the tests
# make test-browser  walks through the explorer's page in Chromium, which has to be there
# make versions   tries the lowest and newest versions of what is needed, on each Python that is here
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/mnist-dcgan
DEMO_GAN := runs/ring-pgmgan

# What tests write is in memory where that has 4 GB to spare: they sync it to the disk all the time.
SHM := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR > 1 && $$4 > 4000000 { print $$6 }')
# One thread each, and bytecode on the disk for the many processes that tests start.
TESTS := OMP_NUM_THREADS=1 PGMKIT_STRICT_PLUGINS=1 PYTHONDONTWRITEBYTECODE= \
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-gan docs test test-browser versions clean

demo: $(READY)
	$(BIN)/pgmkit shatter mnist-dcgan -o $(DEMO) --latents 4000 --classifier mnist-classifier

demo-gan: $(READY)
	$(BIN)/pgmkit train examples/ring-pgmgan.toml --data points:ring -o $(DEMO_GAN)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy & types=$$!; \
	written=$$(mktemp -d $(or $(SHM),$${TMPDIR:-/tmp})/pgmkit-XXXXXX); trap "rm -rf $$written" 0 2 15; \
	TMPDIR=$$written $(TESTS); failed=$$?; wait $$types && exit $$failed

test-browser: $(READY)
	$(BIN)/pip install --quiet --quiet --editable '.[browser]'
	$(BIN)/pytest -m browser tests

versions:
	$(PYTHON) -m venv build/versions/tool
	build/versions/tool/bin/pip install --quiet click uv
	OMP_NUM_THREADS=1 PGMKIT_STRICT_PLUGINS=1 build/versions/tool/bin/python tools/versions.py --out benchmarks/versions.md

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "pgmkit needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
