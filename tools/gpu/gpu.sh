#!/usr/bin/env bash
# All that only a GPU can show, in one command of less than nine minutes on an H100 or H200: whether every kernel is
# right, and then how fast it is. Writes tools/results/gpu.json, anew after each part.
#
#   tools/gpu/gpu.sh                     everything but the headline
#   tools/gpu/gpu.sh --parts headline    the largest decoder that trains; a run of its own, on a GPU with 139 GiB
#   tools/gpu/gpu.sh --dry               every part at toy sizes on the CPU, in Triton's interpreter; its figures mean nothing
#   tools/gpu/gpu.sh --out FOLDER        write there
#
# Needs no install, only this tree and a Python (PYTHON, python3 unless set) with torch >= 2.11 and its Triton, networkx,
# numpy, onnx, onnxruntime, onnxscript, rich and safetensors, and for the tests pytest, pytest-xdist, hypothesis and
# transformers. None of them needs CUDA; what the machine lacks can be brought as wheels and put on PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p build/gpu
ln -sfn ../.. build/gpu/topkast  # the tree is the package
export PYTHONPATH="$PWD/build/gpu${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
TOPKAST_CACHE="$(mktemp -d)"  # the planner measures anew
export TOPKAST_CACHE
trap 'rm -rf "$TOPKAST_CACHE"' EXIT
case " $* " in *" --dry "*) export TRITON_INTERPRET=1 TOPKAST_KERNEL=triton CUDA_VISIBLE_DEVICES= ;; esac
"${PYTHON:-python3}" -m topkast.tools.gpu "$@"
