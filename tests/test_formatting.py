"""Tables for the terminal."""

from __future__ import annotations

from subdistill_hf.formatting import last_part, table


def test_columns_are_aligned_under_a_ruled_header():
    rows = [("layer", "count"), ("stem", "7"), ("a long name", "12345")]
    assert table(rows).splitlines() == [
        "layer        count",
        "-----------  -----",
        "stem         7",
        "a long name  12345",
    ]


def test_numbers_are_aligned_to_the_right():
    rows = [("layer", "count"), ("stem", "7"), ("a long name", "12345")]
    assert table(rows, numbers_from=1).splitlines()[2] == "stem             7"


def test_a_folder_is_called_by_the_last_part_of_its_path_wherever_one_stands(tmp_path, monkeypatch):
    inner = tmp_path / "my photos" / "small"
    inner.mkdir(parents=True)
    (inner / "link").symlink_to(tmp_path)
    monkeypatch.chdir(inner)
    told = {
        place: last_part(place) for place in (".", "./", "..", "../small/", "link", inner, "a/b.parquet", "a/*.png")
    }
    assert list(told.values()) == ["small", "small", "my photos", "small", "link", "small", "b.parquet", "*.png"]
