"""Images without labels: which files and rows of a dataset they are, and their schema."""

import datasets
import pytest

from helpers import COLUMNS, NAMES, glyph_rows, write_image_folder
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.embedded.glyph_dataset import glyphs_at, load_glyphs
from subdistill_hf.data.unlabelled import load_unlabelled
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def load(place, **options):
    return load_unlabelled(TaskOptions(unlabelled=str(place), **options), COLUMNS, NAMES)


def write_flat(folder, count=4):
    folder.mkdir(parents=True)
    for place, image in enumerate(glyph_rows()["img"][:count]):
        image.save(folder / f"{place}.png")
    return folder


def test_a_folder_may_have_any_layout_and_its_images_get_the_schema_of_the_subtask(tmp_path):
    write_flat(tmp_path / "mine")
    write_flat(tmp_path / "mine" / "deep" / "deeper", 3)
    found = load(tmp_path / "mine")
    assert (found.name, found.hub_id, found.split, len(found.rows)) == ("mine", None, "train", 7)
    assert found.rows.column_names == [COLUMNS.image, COLUMNS.label]
    assert found.rows[COLUMNS.label][:] == [-1] * 7
    assert found.rows.features[COLUMNS.label].names == list(NAMES)
    assert found.rows[0][COLUMNS.image].size == (32, 32)


def test_of_a_dataset_with_splits_the_images_for_training_are_taken(tmp_path):
    write_image_folder(tmp_path / "images", train=2, test=5)
    found = load(tmp_path / "images")
    assert (found.split, len(found.rows)) == ("train", 6)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_are_read_whatever_other_columns_they_have(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)  # 5 seconds at the end of a stream
    rows = glyph_rows(per_class=4)
    rows.to_parquet(tmp_path / "train-00000.parquet")
    assert sizes(load(tmp_path, streaming=streaming)) == [(32, 32)] * 12
    assert len(load(tmp_path, streaming=streaming, unlabelled_images=5).rows) == 5


def test_a_table_needs_no_labels(tmp_path):
    glyph_rows(per_class=2).select_columns(["img"]).to_parquet(tmp_path / "some.parquet")
    assert len(load(tmp_path / "some.parquet").rows) == 6
    glyph_rows(per_class=2).select_columns(["img"]).save_to_disk(str(tmp_path / "saved"))
    assert len(load(tmp_path / "saved").rows) == 6


def files(found):
    return set(encoded(found.rows))


def sizes(found):
    return [image.size for image in found.rows[COLUMNS.image]]


def test_embedded_images_of_all_classes_are_those_of_the_dataset():
    found = load("glyphs-100", unlabelled_images=6)
    assert found.name == "glyphs-100"
    assert len(found.rows) == 6
    drawn = load("glyphs-100", unlabelled_images=3)
    assert files(drawn) < files(found)  # fewer are a part of more


def test_an_embedded_image_is_the_one_at_its_place():
    made = glyphs_at("train", [2 * 3 + 1], 2).cast_column("img", datasets.Image(decode=False))
    assert made[0]["img"]["bytes"] == encoded(load_glyphs([3], 2, 1)["train"])[1]


def encoded(rows):
    return [image["bytes"] for image in rows.cast_column("img", datasets.Image(decode=False))["img"]]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_folder_of_the_dataset_that_students_are_measured_on_is_refused(tmp_path, split):
    write_image_folder(tmp_path / "images", train=1, test=1)
    (tmp_path / "images" / "test").rename(tmp_path / "images" / split)
    with pytest.raises(DataError, match=f"is the {split} folder of the dataset"):
        load(tmp_path / "images" / split, dataset=str(tmp_path / "images"))
    assert len(load(tmp_path / "images" / "train", dataset=str(tmp_path / "images")).rows) == 3


def test_several_splits_without_one_for_training_are_refused(tmp_path):
    for split in ("test", "validation"):
        write_flat(tmp_path / "images" / split)
    with pytest.raises(DataError, match="expected a train split or one split alone, found validation, test"):
        load(tmp_path / "images")


def test_a_place_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        load(tmp_path / "nowhere")
