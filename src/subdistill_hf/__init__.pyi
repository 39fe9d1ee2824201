from .config.commands import ExplainOptions as ExplainOptions
from .config.commands import ExportOptions as ExportOptions
from .config.commands import FamilyOptions as FamilyOptions
from .config.options import DataOptions as DataOptions
from .config.options import TaskOptions as TaskOptions
from .config.training import SubDistillConfig as SubDistillConfig
from .core.moments import Moments as Moments
from .core.pairing import LayerPair as LayerPair
from .core.subspaces import Subspace as Subspace
from .data.collate import ViewCollator as ViewCollator
from .data.loading import load_subtask as load_subtask
from .data.subtask import Subtask as Subtask
from .data.views import ViewDataset as ViewDataset
from .errors import SubDistillError as SubDistillError
from .explain.run import explain_student as explain_student
from .export.run import export_student as export_student
from .family.run import FamilyRequest as FamilyRequest
from .family.run import distill_family as distill_family
from .losses.logits import logit_distillation as logit_distillation
from .losses.subspace import SubspaceAlignment as SubspaceAlignment
from .models.loading import load_teacher as load_teacher
from .models.students import build_student as build_student
from .pipeline.run import distill as distill
from .training.trainer import SubDistillTrainer as SubDistillTrainer

__version__: str
