"""Every format for devices is known everywhere, and its packages are imported when it is used alone."""

from typing import get_args, get_type_hints

import pytest

from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.config.extras import EXTRAS
from subdistill_hf.export import executorch_quantisation, formats, onnx_quantisation
from subdistill_hf.export.device_folder import TEMPLATES
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.formats import FORMATS, FormatCode, load_format
from subdistill_hf.hub.files import EXPORT_FOLDERS, EXPORTED


def test_the_registries_name_the_same_formats():
    assert get_args(get_type_hints(ExportOptions)["format"]) == tuple(EXPORT_FORMATS) == tuple(FORMATS)
    assert tuple(EXPORT_FORMATS) == EXPORT_FOLDERS


def test_every_way_to_eight_bits_is_put_into_words():
    ways = {name: tuple(known.int8_ways) for name, known in EXPORT_FORMATS.items()}
    assert ways == {"onnx": tuple(onnx_quantisation.SCHEMES), "executorch": executorch_quantisation.SCHEMES}


@pytest.mark.parametrize("name", EXPORT_FORMATS)
def test_what_is_known_of_a_format_fits(name):
    known = EXPORT_FORMATS[name]
    assert known.extra in EXTRAS
    assert known.suffix in EXPORTED
    assert known.float_file.endswith(known.suffix)
    assert known.int8_file.endswith(known.suffix)
    assert bool(known.without_inside) == ("inside" not in known.preprocessing)
    for place in known.preprocessing:
        assert (TEMPLATES / known.script.replace(".py", f"_{place}.py.txt")).is_file()


def test_packages_that_do_not_fit_those_beside_them_are_refused(monkeypatch):
    def load():
        raise ImportError("undefined symbol: decref_pyobject")

    monkeypatch.setattr(formats, "FORMATS", {"executorch": FormatCode(load, print)})
    with pytest.raises(ExportError, match=r"ExecuTorch do not load here \(undefined symbol.*pip install"):
        load_format("executorch")
