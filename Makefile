# `make` without a target lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Runs a command with the package's settings for CPU threads; kernels inherit them.
THREADS := $(BIN)/python -m talkinghead_lab.foundation.threads
STAMP := $(VENV)/.installed
TRITON := $(VENV)/.triton
WORKERS ?= 2
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help setup demo verify bench test lint hooks lab notebooks published serve smoke wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the environment .venv from requirements.lock, if missing or outdated

$(STAMP): requirements.lock requirements-torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] < (3, 14); \
	  sys.exit(None if ok else "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the versions of requirements.lock into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --requirement requirements-torch.txt
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
	@echo "The environment is ready: $(VENV)"

demo: setup ## generate a video from the sample portrait and recording, print its path
	@$(BIN)/python -m talkinghead_lab generate embedded

verify: setup ## generate a run again and compare: make verify RUN=outputs/…
	@test -n "$(RUN)" || { echo "Name the run: make verify RUN=outputs/…"; exit 2; }
	@$(BIN)/python -m talkinghead_lab verify "$(RUN)"

bench: setup ## benchmark the networks against this machine's limits; one part: make bench BENCH='--only attention'
	@mkdir -p outputs
	$(BIN)/python -m talkinghead_lab.bench --out outputs/bench.json $(BENCH)

$(TRITON): $(STAMP) requirements-triton.txt
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-triton.txt
	@touch $@

test: $(TRITON) ## run the tests on all cores and print the coverage of the package
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --cov

lint: setup ## check style, formatting, types and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

hooks: setup ## check every commit before it is made: style, imports, notebooks
	$(BIN)/pre-commit install

lab: setup ## open JupyterLab in notebooks/
	@! git rev-parse --git-dir >/dev/null 2>&1 || git config --get-all include.path | grep -qx ../.gitconfig || \
	  git config --add include.path ../.gitconfig  # notebooks saved in JupyterLab show no difference to git
	$(THREADS) $(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01_generate.ipynb

notebooks: setup ## run every notebook with the bundled model; executed copies go to outputs/notebooks/
	@mkdir -p outputs/notebooks
	@for notebook in $(NOTEBOOKS); do \
	  name=$$(basename $$notebook .ipynb); echo "$$notebook"; \
	  case $$name in \
	    06_benchmark) given="-p small True -p folder outputs/notebooks/$$name -p workers $(WORKERS)" ;; \
	    *_sweep) given="-p small True -p folder outputs/notebooks/$$name -p workers $(WORKERS)" ;; \
	    05_tune) given="-f params/embedded.yaml -p generate_at_once True" ;; \
	    01_generate) given="-f params/embedded.yaml" ;; \
	    *) given= ;; \
	  esac; \
	  $(THREADS) $(BIN)/papermill --no-progress-bar $$notebook outputs/notebooks/$$name.ipynb $$given || exit 1; \
	done

published: setup ## run both published sweeps again (336 runs); results go to outputs/published/
	@for name in 02_cfg_sweep 03_step_sweep; do echo "$$name"; mkdir -p outputs/published/$$name; \
	  $(THREADS) $(BIN)/papermill --no-progress-bar notebooks/$$name.ipynb outputs/published/$$name/$$name.ipynb \
	    -p sweep_file outputs/published/$$name/sweep.yaml -p folder outputs/published/$$name -p workers $(WORKERS) || exit 1; \
	done

# The service's defaults, /data/shared and /output, suit a container; these folders need no special permissions.
serve: export SHARED_DIR ?= shared
serve: export OUTPUT_DIR ?= outputs/service
serve: setup ## start the HTTP service on port 8200; set SHARED_DIR, OUTPUT_DIR, CKPT_DIR, …
	@mkdir -p $(SHARED_DIR) $(OUTPUT_DIR)
	$(BIN)/python -m talkinghead_lab.service.supervisor

smoke: setup ## test a running service: make smoke AUDIO=recording.wav IMAGE=portrait.png PROMPT='…'
	@$(BIN)/python -m talkinghead_lab.service.smoke --audio "$$AUDIO" --image "$$IMAGE" --prompt "$$PROMPT"

wheel: setup ## build the wheel and the source distribution into dist/
	@rm -rf build dist
	$(BIN)/python -m build --no-isolation

# uv resolves for every Python at once. PyTorch has a file of its own, without hashes: its version is fixed, its build
# (CPU or CUDA) is the machine's. What CUDA needs stays out: pip adds it where that build asks for it. Extras `bench`,
# `faces` and `hopper` are left out: large, or for one kind of GPU.
lock: LOCKED := build/locked.txt
lock: ## pin anew after a change in pyproject.toml; `make lock UPGRADE=numpy` also raises one pin
	$(BIN)/python -m pip install --quiet uv
	@mkdir -p build
	cat requirements.lock requirements-torch.txt requirements-triton.txt > $(LOCKED)
	$(BIN)/uv pip compile --quiet pyproject.toml $(addprefix --extra ,cluster dev service test training) \
	  --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header --no-annotate \
	  $(if $(UPGRADE),--upgrade-package $(UPGRADE)) --output-file $(LOCKED)
	{ echo '# Exact versions for Python 3.11 to 3.13, made by `make lock`. PyTorch: requirements-torch.txt.'; \
	  awk '/^[a-z]/ { kept = !/^(cuda|nvidia|torch|triton)[-=]/ } kept' $(LOCKED); } > requirements.lock
	{ echo '# Made by `make lock`. Without a hash: which build pip finds is the choice of the machine.'; \
	  grep -o '^torch==[^ ]*' $(LOCKED); } > requirements-torch.txt
	{ echo '# Made by `make lock`. What the CUDA build of this PyTorch needs; `make test` installs it beside a CPU build, too.'; \
	  awk '/^[a-z]/ { kept = /^triton==/ } kept' $(LOCKED); } > requirements-triton.txt

clean: ## remove .venv, build files and tool caches; outputs/ is kept
	rm -rf $(VENV) build dist *.egg-info .coverage* .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
