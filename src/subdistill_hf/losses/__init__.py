"""The losses of layers and logits, on torch alone."""

from subdistill_hf.losses.subspace import SubspaceAlignment as SubspaceAlignment
from subdistill_hf.losses.subspace import logit_distillation as logit_distillation
