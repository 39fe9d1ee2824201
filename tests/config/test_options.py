"""The options know names alone, without torch; the names are those of what other packages implement."""

from dataclasses import fields
from typing import get_args

import pytest

from helpers import run_python
from subdistill_hf.config import options
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.commands import AnalyseOptions, InspectOptions
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.validation import choices_of
from subdistill_hf.data.marks import MARKS
from subdistill_hf.data.sources import open_source
from subdistill_hf.data.views import AUGMENTATIONS
from subdistill_hf.models.loading import TEACHERS_FOLDER


@pytest.mark.parametrize(
    ("names", "registry"),
    [(options.Augmentation, AUGMENTATIONS), (options.Mark, MARKS)],
    ids=["Augmentation", "Mark"],
)
def test_names_are_those_of_the_registries(names, registry):
    assert get_args(names) == tuple(registry)


def test_fields_have_the_choices_of_these_names():
    task = choices_of(options.TaskOptions)
    assert task["augmentation"] == (*get_args(options.Augmentation), options.AUTO)
    assert task["compare"] is METHODS
    assert choices_of(InspectOptions)["basis"] == choices_of(AnalyseOptions)["bases"] == BASES


@pytest.mark.parametrize("kind", [DistillationOptions, options.TaskOptions, AnalyseOptions])
def test_help_texts_name_every_choice(kind):
    helps = {field.name: field.metadata["help"] for field in fields(kind)}
    for name, choices in choices_of(kind).items():
        if name not in ("bases",):  # which refers to another option
            assert [choice for choice in choices if choice not in helps[name]] == []


def test_what_is_embedded_is_there():
    assert sorted(options.EMBEDDED_TEACHERS) == sorted(path.name for path in TEACHERS_FOLDER.iterdir())
    for name in options.EMBEDDED_DATASETS:
        source = open_source(options.DataOptions(dataset=name))
        assert {"train", "test"} <= set(source.splits)


@pytest.mark.parametrize(
    "module", ["options", "distillation", "commands", "bases", "methods", "validation", "defaults"]
)
def test_options_are_known_without_torch(module):
    heavy = "{'torch', 'transformers', 'datasets', 'numpy'}"
    run_python(f"import sys; import subdistill_hf.config.{module}; assert not {heavy} & set(sys.modules)")
