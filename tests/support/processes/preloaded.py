"""What the server imports of which every process of a test is a fork. Otherwise each process imports it at its first
optimizer step and first compiled block."""

import atexit
import gc

import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed.checkpoint.state_dict  # noqa: F401

from . import sharded  # noqa: F401

gc.freeze()  # a million objects that no process has to look through: a conversion among several ranks does this
atexit.register(gc.unfreeze)
