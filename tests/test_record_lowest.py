"""What the record of the tests with the lowest versions is made of."""

from record_lowest import counted, direct_requirements

CASES = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><skipped message="needs a GPU"/></testcase><testcase name="c"/>
<testcase name="d"><failure message="no"/></testcase><testcase name="e"><error message="no"/></testcase>
<testcase name="f"><skipped message="needs a GPU"/></testcase>
</testsuite></testsuites>"""


def test_extras_that_an_extra_names_are_asked_for_too():
    project = {
        "name": "ours",
        "dependencies": ["torch>=2", "ours[plots]"],
        "optional-dependencies": {"dev": ["ours[digits]", "pytest>=8"], "plots": ["scipy>=1"], "digits": ["Pillow"]},
    }
    expected = {"Pillow": "Pillow", "pytest": "pytest>=8", "scipy": "scipy>=1", "torch": "torch>=2"}
    assert list(direct_requirements(project).items()) == list(expected.items())


def test_tests_are_counted_over_files(tmp_path):
    files = [tmp_path / "a.xml", tmp_path / "b.xml"]
    for file in files:
        file.write_text(CASES, encoding="utf-8")
    assert counted(files) == {"passed": 4, "failed": 4, "skipped": 4, "reasons_to_skip": {"needs a GPU": 4}}
