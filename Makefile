# `make` without a target lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help setup demo verify bench test lint lab notebooks published serve smoke lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the environment .venv from requirements.lock, if missing or outdated

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] < (3, 14); \
	  sys.exit(None if ok else "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the versions of requirements.lock into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock --editable .
	@touch $@
	@echo "The environment is ready: $(VENV)"

demo: setup ## generate a video from the sample portrait and recording, print its path
	@$(BIN)/python -m talkinghead_lab generate params/embedded.yaml

verify: setup ## generate a run again and compare: make verify RUN=outputs/…
	@test -n "$(RUN)" || { echo "Name the run: make verify RUN=outputs/…"; exit 2; }
	@$(BIN)/python -m talkinghead_lab verify "$(RUN)"

bench: setup ## benchmark the networks against this machine's limits; one part: make bench BENCH='--only attention'
	@mkdir -p outputs
	$(BIN)/python -m talkinghead_lab.bench --out outputs/bench.json $(BENCH)

test: setup ## run the tests
	$(BIN)/python -m pytest

lint: setup ## check style, formatting, types and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lab: setup ## open JupyterLab in notebooks/
	$(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01_generate.ipynb

notebooks: setup ## run every notebook with the bundled model; executed copies go to outputs/notebooks/
	@mkdir -p outputs/notebooks
	@for notebook in $(NOTEBOOKS); do \
	  name=$$(basename $$notebook .ipynb); echo "$$notebook"; \
	  case $$name in \
	    *_sweep) given="-p small True -p folder outputs/notebooks/$$name -p workers $(WORKERS)" ;; \
	    05_tune) given="-f params/embedded.yaml -p generate_at_once True" ;; \
	    *) given="-f params/embedded.yaml" ;; \
	  esac; \
	  $(BIN)/papermill --no-progress-bar $$notebook outputs/notebooks/$$name.ipynb $$given || exit 1; \
	done

published: setup ## run both sweeps in full (20 minutes on two cores); results go to outputs/published/
	@for name in 02_cfg_sweep 03_step_sweep; do echo "$$name"; mkdir -p outputs/published/$$name; \
	  $(BIN)/papermill --no-progress-bar notebooks/$$name.ipynb outputs/published/$$name/$$name.ipynb \
	    -p folder outputs/published/$$name -p workers $(WORKERS) || exit 1; \
	done

# The service's defaults, /data/shared and /output, suit a container; these folders need no special permissions.
serve: export SHARED_DIR ?= shared
serve: export OUTPUT_DIR ?= outputs/service
serve: setup ## start the HTTP service on port 8200; set SHARED_DIR, OUTPUT_DIR, CKPT_DIR, …
	@mkdir -p $(SHARED_DIR) $(OUTPUT_DIR)
	$(BIN)/python -m talkinghead_lab.service

smoke: setup ## test a running service: make smoke AUDIO=recording.wav IMAGE=portrait.png PROMPT='…'
	@$(BIN)/python -m talkinghead_lab.service.smoke --audio "$$AUDIO" --image "$$IMAGE" --prompt "$$PROMPT"

# uv resolves for every Python at once. What CUDA needs stays out of the lock: pip adds it where the
# machine's PyTorch asks for it, and a machine with the CPU build never sees it. Ray, extra `cluster`, has to be of
# the version of the cluster it joins; the packages of extra `faces` are large, and few need them.
lock: setup ## pin anew after a change in pyproject.toml; `make lock UPGRADE=numpy` also raises one pin
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet pyproject.toml --extra service --extra test --extra training --universal --python-version 3.11 \
	  --fork-strategy fewest --no-header --no-annotate $(if $(UPGRADE),--upgrade-package $(UPGRADE)) \
	  --output-file requirements.lock
	sed -i -E '/^(cuda|nvidia|triton)[-=]/d; 1i # Exact versions for Python 3.11 to 3.13, made by `make lock`.' requirements.lock

clean: ## remove .venv, build files and tool caches; outputs/ is kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
