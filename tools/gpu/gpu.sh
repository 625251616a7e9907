#!/usr/bin/env bash
# All that only a GPU can show, in three commands of less than eight minutes each on an H100 or H200. Writes
# tools/results/gpu.json, anew after each part; a later call adds to what is there.
#
#   tools/gpu/gpu.sh --call 1            the hardware, whether every kernel is right, and how fast single products are
#   tools/gpu/gpu.sh --call 2            how fast whole steps are, with and without CUDA graphs, and a profile
#   tools/gpu/gpu.sh --call 3            the headline: the largest decoder that trains, on a GPU with 139 GiB
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
