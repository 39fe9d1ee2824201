"""The targets of every view in mapped files: which rows are a view's, and in which form a batch carries them."""

import pickle

import pytest
import torch

from helpers import processor, views
from subdistill_hf.core.activations import Features
from subdistill_hf.data.collate import LOGITS, TARGETS, ViewCollator
from subdistill_hf.teacher.cache import CachedCollator, StoredLayer, TeacherCache
from subdistill_hf.teacher.cache_files import CacheError, TargetFile

IMAGES, VIEWS, CLASSES = 5, 2, 3


def written(folder, name, values):
    """A file of float32 targets that holds these values."""
    file = TargetFile(folder, {"name": name}, tuple(values.shape), "float32")
    part = folder / f".{name}.part"
    file.begin(part)
    file.mapped(part, writable=True)[:] = values
    file.publish(part)
    return file


@pytest.fixture
def stored(tmp_path):
    """Random logits and targets of a map and of tokens, `(view, image, ...)`, and the cache that holds them."""
    torch.manual_seed(0)
    values = {
        "": torch.randn(VIEWS, IMAGES, CLASSES),
        "maps": torch.randn(VIEWS, IMAGES, 4, 6),  # K, P
        "tokens": torch.randn(VIEWS, IMAGES, 7, 4),  # P, K
    }
    files = {name: written(tmp_path, name or "logits", value.flatten(0, 1)) for name, value in values.items()}
    layers = {
        "maps": StoredLayer(files["maps"], (2, 3), 0, tokens=False),
        "tokens": StoredLayer(files["tokens"], (2, 3), 1, tokens=True),
    }
    return values, TeacherCache(IMAGES, VIEWS, files[""], layers)


def test_a_batch_carries_the_targets_of_its_images_in_their_views(stored):
    values, cache = stored
    image, view = torch.tensor([4, 0, 4]), torch.tensor([1, 0, 0])
    batch = cache.read(image, view)
    assert set(batch) == {LOGITS, TARGETS}
    logits, targets = cache.targets(batch)
    assert torch.equal(logits, values[""][view, image])
    assert torch.equal(targets["maps"].values, values["maps"][view, image])
    assert torch.equal(targets["tokens"].values, values["tokens"][view, image].transpose(1, 2))
    assert {name: (each.grid, each.prefix) for name, each in targets.items()} == {
        "maps": ((2, 3), 0),
        "tokens": ((2, 3), 1),
    }


def test_features_are_stored_as_rows_and_read_back(stored):
    _, cache = stored
    features = {"maps": Features(torch.randn(2, 4, 6), (2, 3)), "tokens": Features(torch.randn(2, 4, 7), (2, 3), 1)}
    rows = cache.packed(torch.zeros(2, CLASSES), features)
    assert rows["maps"].shape == (2, 4, 6)
    assert rows["tokens"].shape == (2, 7, 4)
    for name, layer in cache.layers.items():
        assert torch.equal(layer.unpack(rows[name]).values, features[name].values)


@pytest.mark.parametrize(("image", "view"), [([0, IMAGES], [0, 0]), ([0, 1], [0, VIEWS]), ([-1], [0])])
def test_places_outside_the_cache_are_refused(stored, image, view):
    with pytest.raises(CacheError, match=f"expected images below {IMAGES} and views below {VIEWS}, found image"):
        stored[1].read(torch.tensor(image), torch.tensor(view))


def test_a_copy_in_another_process_maps_the_files_itself(stored):
    _, cache = stored
    cache.open()
    copy = pickle.loads(pickle.dumps(cache))
    assert copy._mapped == {}
    places = torch.tensor([1, 2]), torch.tensor([0, 1])
    assert torch.equal(copy.read(*places)[LOGITS], cache.read(*places)[LOGITS])


def test_what_is_mapped_stays_when_another_run_makes_room_and_what_is_not_is_missed(stored, tmp_path):
    values, cache = stored
    late = pickle.loads(pickle.dumps(cache))
    cache.open()
    for path in tmp_path.iterdir():
        path.unlink()
    places = torch.tensor([3]), torch.tensor([1])
    assert torch.equal(cache.read(*places)[LOGITS], values[""][1, 3][None])
    with pytest.raises(CacheError, match="were deleted during the run: start it again"):
        late.read(*places)


def test_a_collator_adds_targets_and_can_leave_pixels_to_a_device(stored):
    values, cache = stored
    collate = CachedCollator(ViewCollator(processor()), cache)
    examples = views(views=VIEWS).__getitems__([3, 1])
    whole = collate(examples)
    assert set(whole) == {"pixel_values", "labels", "index", "view", LOGITS, TARGETS}
    assert torch.equal(whole[LOGITS], values[""][0, [3, 1]])
    unfinished = collate.unfinished()
    left = unfinished(examples)
    assert set(left) == {"images", "labels", "index", "view", LOGITS, TARGETS}
    finished = unfinished.finish(left)
    assert finished.keys() == whole.keys()
    torch.testing.assert_close(finished["pixel_values"], whole["pixel_values"])
    own = CachedCollator(lambda items: {"index": [0], "view": [0]}, cache)
    assert own.unfinished() is own
    assert own.finish(left) is left
