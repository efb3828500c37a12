# Every target does all set-up on a fresh machine first: a virtual environment in .venv, with tested versions.
#
#   make demo                  the whole road on a synthetic abdomen; ends with the path of the report
#   make test                  the test suite
#   make test-slurm            the job scripts on a real SLURM, which is installed where that can be done (minutes)
#   make lint                  ruff and mypy
#   make docs                  the documentation as a site in build/site, with the API and every command's options
#   make peers                 nnU-Net in an environment of its own, for the benchmarks (several GB)
#   make clean                 remove the environment and caches
#
#   make PYTHON=python3.12 ... another Python (3.10 or newer)
#   make TORCH="..." ...       what to hand to `pip install` for torch, for example
#                              TORCH=torch                                the newest, with CUDA on Linux
#                              TORCH="torch --index-url https://download.pytorch.org/whl/cpu"   without CUDA

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .peers
TORCH ?= torch -c constraints.txt
WORKERS ?= auto

BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-slurm lint docs setup peers clean

demo: $(READY)
	$(BIN)/flarecps demo $(if $(OUT),--out $(OUT))
	@echo "For commands of your own: . $(BIN)/activate"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slurm"

# Alone, after the others: it has limits of seconds, and two nodes' worth of processes.
test-slurm: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/ready-docs
	$(BIN)/python docs/build_site.py build/site

$(VENV)/ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c $(VENV)/constraints.txt
	touch $@

setup: $(READY)

# torch goes first, from where the caller wants it; whatever came is then left alone (its own pin is taken out).
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed (make PYTHON=...)')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[tests]' -c $(VENV)/constraints.txt
	touch $(READY)

# The benchmarks take its Python from FLARECPS_PEER_PYTHON.
peers: $(PEERS)/ready

$(PEERS)/ready: benchmarks/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@
	@echo "export FLARECPS_PEER_PYTHON=$(abspath $(PEERS))/bin/python"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
