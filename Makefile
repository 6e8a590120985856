# make demo      a virtual environment with detcam and every extra, then the demonstration
# make test      the test suite (make test-slow: the slow tests alone)
# make test-oldest   the test suite with the oldest versions that setup.cfg allows, on Python 3.10 where it is there
# make soak      2,000 explanations in one process: memory, hooks and file handles
# make lint      style, format and types
# make bench     speed against other libraries
# make planted-peers   other libraries on detectors with planted causes; trains the detectors into build/planted
# make repair-proof    whether counterfactual pairs repair detectors with a known shortcut; trains for about half an hour
# make blood-cells     a YOLO of blood cells from the first audit to a training with corrected annotations; needs the reference data
# make wheel-check   the wheel and the editable install, imported from outside the repository
# make dist      wheel and source archive in dist/, checked (TAG=v1.2.3 compares the version with a tag)
# make docs      the documentation site, in build/site; warnings are errors
# make docs-images   the images of the documentation, drawn again (needs Chromium)
# make clean     removes the virtual environment and everything built
#
# PYTHON=... picks the interpreter, VENV=... the virtual environment, WORKERS=... the test processes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
WORKERS ?= 2
BIN := $(abspath $(VENV))/bin

# The newest Python that can make a virtual environment; asked for only when one has to be made.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

# One thread a process; nothing asks the network, writes to the home folder or installs packages behind pip's back.
QUIET := OMP_NUM_THREADS=1 MPLBACKEND=Agg HF_HUB_OFFLINE=1 NO_ALBUMENTATIONS_UPDATE=1 \
	YOLO_OFFLINE=True YOLO_AUTOINSTALL=False YOLO_CONFIG_DIR=$(abspath $(VENV))/ultralytics

.PHONY: help env demo test test-slow test-oldest soak lint format bench planted-peers repair-proof blood-cells wheel-check dist docs docs-images clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

# The stamps are newer than setup.cfg once its dependencies are installed.
$(VENV)/bin/pip:
	@[ -n "$(PYTHON)" ] || { echo "No Python found: detcam needs Python 3.10 or newer with the venv module." \
		"Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is not Python 3.10 or newer, which detcam needs. Name another: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-all: setup.cfg | $(VENV)/bin/pip
	$(BIN)/python -m pip install -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: setup.cfg | $(VENV)/bin/pip
	$(BIN)/python -m pip install -e '.[all,test,dev,docs]'
	$(BIN)/python -m pip install --no-deps tidecv==1.0.1 quantus==0.6.0
	@touch $@ $(VENV)/.installed-all

env: $(VENV)/.installed-dev

demo: $(VENV)/.installed-all
	$(BIN)/detcam demo

test: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

soak: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python -m pytest -m slow tests/core/test_soak.py

# The oldest Python that can make a virtual environment.
OLDEST_PYTHON ?= $(shell for p in python3.10 python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
OLDEST := build/oldest

# The packages of the tests alone are as new as they can be beside the oldest ones.
test-oldest: setup.cfg
	rm -rf $(OLDEST)
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST_PYTHON) .ci/floors.py > $(OLDEST)/floors.txt
	$(OLDEST)/bin/python -m pip install 'setuptools>=77.0.3' wheel
	$(OLDEST)/bin/python -m pip install -c $(OLDEST)/floors.txt -e '.[all,test]'
	$(OLDEST)/bin/python -m pip install --no-deps tidecv==1.0.1 quantus==0.6.0
	$(QUIET) $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal

# mypy knows packages by their folders alone, so it is shown the tree as it is installed.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	@rm -rf build/typing && mkdir -p build/typing/detcam
	@ln -s $(CURDIR)/detcam/* $(CURDIR)/adapters $(CURDIR)/targets build/typing/detcam/
	cd build/typing && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python tests/peers/bench.py

# xaitk-saliency and its packages ask for versions of setuptools and numpy that others exclude.
planted-peers: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --no-deps captum torchcam xaitk-saliency smqtk-core smqtk-classifier \
		smqtk-descriptors smqtk-detection smqtk-dataprovider smqtk-image-io
	$(QUIET) $(BIN)/python tests/peers/planted_tools.py --out build/planted --cases 8 --family two-stage \
		--scenario context mark look-alike tiny and natural
	$(QUIET) $(BIN)/python tests/peers/planted_tools.py --out build/planted --cases 8 --family yolo --scenario look-alike
	$(QUIET) $(BIN)/python tests/peers/planted_tools.py --out build/planted --cases 40 --family yolo --scenario look-alike \
		--tool visualize

repair-proof: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python tests/peers/measure_repair.py --family two-stage --out build/repair
	$(QUIET) $(BIN)/python tests/peers/measure_repair.py --family yolo --scenes 30 --steps 160 --explain 24 --out build/repair

blood-cells: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python tests/peers/measure_blood_cells.py --out build/blood-cells

# The wheel goes into a second environment that borrows the first one's packages: a path added by a .pth file
# is searched, but the .pth files in it, the editable install's among them, are not read. setuptools would put
# into the wheel whatever an earlier build left in build/lib.
wheel-check: $(VENV)/.installed-dev
	rm -rf build/wheel build/lib
	$(BIN)/python -m build --wheel --outdir build/wheel > /dev/null
	$(BIN)/python -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --no-deps build/wheel/*.whl
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/wheel/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	cd / && $(QUIET) $(CURDIR)/build/wheel/venv/bin/python $(CURDIR)/.ci/check_install.py wheel
	cd / && $(QUIET) $(BIN)/python $(CURDIR)/.ci/check_install.py editable
	cd / && $(QUIET) $(CURDIR)/build/wheel/venv/bin/detcam --help > /dev/null

dist: $(VENV)/.installed-dev
	rm -rf dist build/lib
	$(BIN)/python -m build --outdir dist > /dev/null
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py "$$($(BIN)/python -c 'import detcam; print(detcam.__version__)')" $(TAG)

docs: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python -m sphinx -b html -W --keep-going -q docs build/site
	$(BIN)/python .ci/check_site.py build/site

docs-images: $(VENV)/.installed-dev
	$(QUIET) $(BIN)/python docs/draw_images.py

clean:
	rm -rf docs/api
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
