# The commands: setup, demo, test, test-all, lint, docs, sanitize, wheels, zoo, other-torch. Each makes what it needs first, so any of them works from a fresh clone.
# clang, aarch64, macos and windows compile for other machines, and tensorboard tests with TensorBoard.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The demo's arguments, as in: make demo ARGS="--fwd 0.95 --steps 300"
ARGS ?=
WORKERS ?= 2

.PHONY: setup demo test test-all lint docs docs-links sanitize onnxruntimes wheels try-wheel zoo other-torch clang aarch64 macos windows tensorboard clean
.DEFAULT_GOAL := setup

setup: $(READY)

# torch goes first, alone and pinned: what is resolved after it must fit it, not the other way round. compileall makes
# the bytecode on every core, where pip would on one; it fails on 3.11, for torch holds a file that only 3.12 can read.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard runtime/native/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	$(BIN)/python -m pip install -q --no-input --no-compile -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --no-input --no-compile -c constraints.txt -e ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib > /dev/null || true
	touch $@

demo: $(READY)
	$(BIN)/python -m topkast.tools.demo $(ARGS)

# One thread a worker: two workers with two threads each on two cores wait for one another.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not long" $(ARGS)

# The rest: sweeps, the interpreter of the CUDA kernels, whole runs of the tools.
test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m long $(ARGS)

# mypy finds packages by path, so it reads the package through a link that bears its name.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	mkdir -p build/types && ln -sfn ../.. build/types/topkast
	MYPYPATH=build/types $(BIN)/mypy --namespace-packages --explicit-package-bases \
		-m topkast -p topkast.compiler -p topkast.passes -p topkast.runtime -p topkast.tools -p topkast.tests

# The site, in build/docs. A warning is an error; so is a link to a page, a heading or a name of topkast that does not exist.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Asks every web address that the pages name. Only this needs the network, so it is no part of `make docs`.
docs-links: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b linkcheck docs build/docs-links

# The tests of native code on libraries that stop at the first read or write out of bounds, or undefined operation.
SANITIZED := build/sanitized/libtopkast.so
SANITIZE := -std=c++17 -O1 -g -fPIC -shared -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=all
$(SANITIZED): $(wildcard runtime/native/*/*)
	mkdir -p $(@D)
	$(CXX) $(SANITIZE) $(addprefix -I,$(wildcard runtime/native/*/)) $(wildcard runtime/native/*/*.cpp) -o $@

# With libstdc++ beside it: the sanitizer looks for the way exceptions are thrown when it starts, Python has none.
sanitize: $(READY) $(SANITIZED)
	TOPKAST_NATIVE=$(SANITIZED) \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q tests/runtime/native tests/runtime/onnx/test_onnx_library.py tests/runtime/onnx/test_int8.py tests/passes/onnx/test_onnx_conv.py $(ARGS)

# The tests of native code on the library as Clang compiles it. ZIG is a Python package that holds Clang and the C
# libraries of other systems. None of the targets from here to windows is a part of CI: each compiles for minutes.
ZIG := $(BIN)/python -m ziglang c++
FLAGS := -std=c++17 -O3 -ffp-contract=fast -Wno-psabi -fvisibility=hidden $(addprefix -I,$(wildcard runtime/native/*/))
SOURCES := $(wildcard runtime/native/*/*.cpp)
$(VENV)/.zig: $(READY)
	$(BIN)/python -m pip install -q --no-input ziglang || { \
		echo "make: ziglang is missing and pip cannot install it: clang, macos and windows need this package" >&2; exit 1; }
	touch $@
build/clang/libtopkast.so: $(VENV)/.zig $(wildcard runtime/native/*/*)
	mkdir -p $(@D)
	$(ZIG) -target x86_64-linux-gnu.2.17 $(FLAGS) -fPIC -shared -s $(SOURCES) -o $@
clang: build/clang/libtopkast.so
	TOPKAST_NATIVE=$< OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/runtime/native tests/runtime/onnx/test_onnx_library.py $(ARGS)

# The tests of the kernels on kernels for aarch64, which qemu-aarch64 runs (Debian: apt install g++-aarch64-linux-gnu
# qemu-user). PyTorch and the tests run on this processor. test_fuzz is left out: with one instruction set it draws an
# example on which PyTorch's own dense product, the same on any processor, misses the budget by a sixth.
AARCH64 := aarch64-linux-gnu-g++
QEMU := qemu-aarch64
build/aarch64/server: tests/support/emulated/server.cpp $(wildcard runtime/native/*/*)
	@for tool in $(firstword $(AARCH64)) $(firstword $(QEMU)); do command -v $$tool > /dev/null || { \
		echo "make: $$tool is missing: on Debian, apt install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }; done
	mkdir -p $(@D)
	$(AARCH64) $(FLAGS) -static $(filter-out runtime/native/ort/%,$(SOURCES)) tests/support/emulated/server.cpp -o $@
aarch64: $(READY) build/aarch64/server
	TOPKAST_EMULATED="$(QEMU) build/aarch64/server" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not long" \
		-p topkast.tests.support.emulated.remote_library tests/runtime/native/test_native.py tests/runtime/native/test_native_conv.py \
		--deselect tests/runtime/native/test_native.py::test_fuzz $(ARGS)

# The library for macOS. Nothing runs the file: this shows only that the sources compile.
macos: $(VENV)/.zig
	mkdir -p build/macos
	$(ZIG) -target aarch64-macos $(FLAGS) -fPIC -shared -s $(SOURCES) -o build/macos/libtopkast.dylib
	ls -l build/macos

# The same for Windows.
windows: $(VENV)/.zig
	mkdir -p build/windows
	$(ZIG) -target x86_64-windows-gnu $(FLAGS) -shared -s $(SOURCES) -o build/windows/libtopkast.dll
	ls -l build/windows

# The figures for loggers, written by TensorBoard itself, in a folder of its own: it is no part of the environment.
build/tensorboard/.ready: $(READY)
	$(BIN)/python -m pip install -q --no-input --no-deps --target $(@D) tensorboard absl-py grpcio markdown protobuf werkzeug
	touch $@
tensorboard: build/tensorboard/.ready
	PYTHONPATH=$(<D) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/compiler/watch/test_tensorboard.py $(ARGS)

# The library's tests on other versions of ONNX Runtime: the oldest it works on, one between, the one for GPUs (250 MB; it
# runs on the CPU), or VERSIONS.
VERSIONS := 1.17.3 1.20.1 gpu-1.31.1
onnxruntimes: $(READY)
	for version in $(VERSIONS); do $(BIN)/python -m topkast.tools.common.old_onnxruntime $$version || exit 1; done

# A release, in dist: an sdist, and from the sdist one wheel for every Python on Linux.
wheels: $(READY)
	rm -rf build/wheels dist
	$(BIN)/python -m build --outdir build/wheels
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheels/*.whl
	cp build/wheels/*.tar.gz dist

# Installs the wheel as a user does, in an environment of its own, and runs the README's lines there. It downloads torch.
try-wheel: wheels
	rm -rf build/try && $(PYTHON) -m venv build/try
	build/try/bin/python -m pip install -q --no-input -c constraints.txt torch==2.13.0
	build/try/bin/python -m pip install -q --no-input "$$(ls dist/*.whl)[onnx]"
	$(BIN)/python -m topkast.tools.release build/try/bin/python

# The models of other packages, in an environment of their own: torchvision runs only beside the torch that it was built
# with, which need not be the torch of the tests. ARGS are those of `python -m topkast.tools.zoo`.
ZOO := .venv-zoo
$(ZOO)/.ready: pyproject.toml setup.py constraints-zoo.txt $(wildcard runtime/native/*/*)
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install -q --no-input -c constraints-zoo.txt torch torchvision
	$(ZOO)/bin/python -m pip install -q --no-input -c constraints-zoo.txt -e ".[zoo]"
	touch $@
zoo: $(ZOO)/.ready
	$(ZOO)/bin/python -m topkast.tools.zoo $(ARGS)

# Both runs of the tests on another torch, TORCH, in an environment of its own, with the numpy that its Triton runs with.
# The long one runs tools/gpu without a GPU. The package index gives the build with CUDA (4.6 GB), which runs on the CPU
# too. Not a part of CI. docs/reference/versions.md keeps what was printed.
TORCH := 2.11.0
NUMPY := 2.3.*
OTHER := .venv-torch-$(TORCH)
$(OTHER)/.ready: pyproject.toml setup.py $(wildcard runtime/native/*/*)
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install -q --no-input --no-compile torch==$(TORCH) "numpy==$(NUMPY)"
	$(OTHER)/bin/python -m pip install -q --no-input --no-compile -e ".[test]" "numpy==$(NUMPY)"
	touch $@
other-torch: $(OTHER)/.ready
	for part in "not long" long; do OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile \
		-m "$$part" -W default -o filterwarnings=default $(ARGS) || exit 1; done

clean:
	rm -rf build dist *.egg-info runtime/native/*.so runtime/native/*.dylib runtime/native/*.dll .pytest_cache .mypy_cache .ruff_cache .hypothesis
