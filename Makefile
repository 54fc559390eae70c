# make install: the environment (.venv, with the `lab` command in .venv/bin)
# make demo:    three tasks, small: n = 1 and 2 on path-star graphs, 1 and 4 on polynomials, 1 and 2 on stories (minutes)
# make test:    lint, types, import layers, tests
# make figures: every figure from stored results
# make gpu:     with a GPU, and a PYTHON that has torch for it: CUDA tests, then speed and memory, into OUT (8 minutes)
# make lock:    renew constraints.txt from what is installed

PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/gpu

.PHONY: install demo test figures gpu lock
.DEFAULT_GOAL := install

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lab needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/lab sweep run sweeps/demo_star.yaml --workers 2
	$(BIN)/lab figures learning_curves --sweep sweeps/demo_star.yaml
	$(BIN)/lab sweep run sweeps/demo_polynomials.yaml --workers 2
	$(BIN)/lab figures polynomials_by_operations --sweep sweeps/demo_polynomials.yaml
	$(BIN)/lab sweep run sweeps/demo_stories.yaml --workers 2
	$(BIN)/lab figures induction_curves --sweep sweeps/demo_stories.yaml

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

figures: install
	$(BIN)/lab figures

gpu:
	mkdir -p $(OUT)
	$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu: this torch sees no GPU")'
	$(PYTHON) -m pytest -q tests/test_cuda.py
	for size in 1M 10M 30M 100M 300M 1B; do \
		timeout 60 $(PYTHON) -m lab bench train --size $$size --tokens 32768 --context 1024 --n 1 --n 4 --order sequential \
			--steps 5 --json > $(OUT)/part && mv $(OUT)/part $(OUT)/bench_train_$$size.gpu.json || echo "$$size: failed, or out of time"; \
	done
	timeout 60 $(PYTHON) -m lab bench memory --vocabulary 32000 --json > $(OUT)/part && mv $(OUT)/part $(OUT)/bench_memory.gpu.json

lock:
	$(BIN)/python -m pip freeze --exclude-editable | grep '==' | sed 's/+cpu//' > constraints.txt
