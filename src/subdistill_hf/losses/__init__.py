"""The losses of layers and logits, on torch and safetensors alone."""

from subdistill_hf.losses.base import LayerLoss as LayerLoss
from subdistill_hf.losses.logits import decoupled_distillation as decoupled_distillation
from subdistill_hf.losses.logits import logit_distillation as logit_distillation
from subdistill_hf.losses.subspace import SubspaceAlignment as SubspaceAlignment
