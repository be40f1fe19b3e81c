# Every target makes .venv on its first use and installs nothing twice. The same without make:
#   python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python app.py
#
# PYTHON=python3.12       another interpreter, 3.11 or later
# TORCH_INDEX=<address>   take torch and torchvision from this package index: PyTorch's CPU-only index saves
#                         several GB of CUDA libraries on a machine without an NVIDIA GPU
# ARGS="--port 8000"      passed on by `run`, `test`, `test-slow`, `bench` and `screenshots`

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check bench example screenshots

help:
	@echo "make run          the app on http://127.0.0.1:7860"
	@echo "make test         all tests but the slow ones, browser included"
	@echo "make test-slow    the tests that take minutes"
	@echo "make check        ruff and mypy"
	@echo "make bench        kernels, models, fields, maps and traces, timed after their check"
	@echo "make example      the stored result that a fresh page shows first"
	@echo "make screenshots  the pictures of the README"

run: $(RUNTIME)
	$(PY) app.py $(ARGS)

# Two processes share the files; the browser's tests, which keep both cores busy by themselves, follow.
test: $(DEV)
	$(PY) -m pytest -m "not slow and not browser" -n 2 --dist loadfile $(ARGS)
	$(PY) -m pytest -m "browser and not slow" $(ARGS)

test-slow: $(DEV)
	$(PY) -m pytest -m slow $(ARGS)

check: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(DEV)
	$(PY) -m kernels.bench $(ARGS)
	$(PY) -m models.bench $(ARGS)
	$(PY) -m workbench.bench_erf
	$(PY) -m workbench.bench_attribution
	$(PY) -m workbench.bench_trace

example: $(RUNTIME)
	$(PY) -m workbench.example

screenshots: $(DEV)
	$(PY) -m tests.browser.screenshots $(ARGS)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11. Name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The order-only prerequisite keeps a touched interpreter from starting an installation.
$(RUNTIME): requirements.txt | $(PY)
ifneq ($(TORCH_INDEX),)
	grep -E '^torch(vision)?[<>=]' requirements.txt > $(VENV)/torch.txt
	$(PIP) install --index-url $(TORCH_INDEX) -r $(VENV)/torch.txt
endif
	$(PIP) install -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	$(PIP) install -r requirements-dev.txt
	@touch $@
