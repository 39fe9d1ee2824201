"""`evaluate.load` of this folder gives the metric."""

from subdistill_hf.metrics import TeacherAgreement as TeacherAgreement
