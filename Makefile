# One command each, from nothing: a private environment pinned by constraints.txt, then the job.
#   make demo          lyrics-tiny looks at drawn scenes, or at PICTURES=folder; quickstart/report.html shows what it sees
#   make test          all tests but those of the extra experts
#   make test-experts  those, in an environment of their own: torchvision breaks transformers where it does not fit torch
#   make check         format, lint and types
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes: more only compete for memory. Several threads per process would compete for the cores.
PYTEST_FLAGS ?= -q -n 2 --dist loadfile

EXPERTS := .venv-experts
EXPERTS_READY := $(EXPERTS)/.ready

.PHONY: demo test test-experts check format clean

demo: $(READY)
	$(BIN)/lyrics quickstart $(PICTURES)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

test-experts: $(EXPERTS_READY)
	OMP_NUM_THREADS=1 $(EXPERTS)/bin/python -m pytest -q tests/experts

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A private environment in the target's folder: the package and these EXTRAS of it, pinned.
define environment
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
endef

# Everything is compiled once here: without bytecode every start of the command or of a test process pays for it again.
$(READY): EXTRAS := dev
$(READY): pyproject.toml constraints.txt
	$(environment)
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q lyrics
	@touch $@

# groundingdino-py asks for opencv-python, which does not import on a machine without libGL; the headless build takes its place there.
$(EXPERTS_READY): EXTRAS := dev,experts
$(EXPERTS_READY): pyproject.toml constraints.txt
	$(environment)
	@$(EXPERTS)/bin/python -c "import cv2" 2>/dev/null || $(EXPERTS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt --no-deps --force-reinstall opencv-python-headless
	@touch $@

clean:
	rm -rf $(VENV) $(EXPERTS) .pytest_cache .mypy_cache .ruff_cache build quickstart
