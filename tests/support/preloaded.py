"""Imported by the process that forks ranks and commands: what each would do at its start, in some seconds of CPU."""

import torch._dynamo
import torch.distributed.elastic.multiprocessing
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401

import align.training.finetune
import align.training.pretrain  # noqa: F401
from align.training import plan

plan._code()  # 0.9 s of CPU; what it reads is kept
