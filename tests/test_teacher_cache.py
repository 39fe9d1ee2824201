"""The teacher's targets are kept per view: what is remembered is what was computed."""

import pytest
import torch

from helpers import CLASS_IDS, processor, resnet, teacher_resnet, trainer, views
from subdistill_hf.activations import Features
from subdistill_hf.teacher_cache import MAX_BYTES, CacheError, TeacherCache
from subdistill_hf.views import ViewCollator

CPU = torch.device("cpu")
HALF = 2**-11  # the largest relative error of rounding to half precision


class Teacher:
    """Random targets, and a count of the images that it was asked for."""

    def __init__(self, images=6, views=2, scale=1.0):
        generator = torch.Generator().manual_seed(0)
        self.logits = scale * torch.randn(images, views, 3, generator=generator)
        self.layer = scale * torch.randn(images, views, 4, 5, generator=generator)
        self.seen = []

    def targets(self, cache, image, view):
        def compute(places):
            self.seen += [(image[place], view[place]) for place in places.tolist()]
            chosen = torch.tensor(image)[places], torch.tensor(view)[places]
            return self.logits[chosen], {"layer": Features(self.layer[chosen], (2, 2), 1)}

        return cache.targets(torch.tensor(image), torch.tensor(view), compute, CPU)


def test_first_and_later_meetings_give_the_same_numbers_in_any_batch():
    cache, teacher = TeacherCache(6, 2), Teacher()
    image, view = [3, 0, 5, 1], [1, 0, 0, 1]
    logits, features = teacher.targets(cache, image, view)
    assert logits.dtype == features["layer"].values.dtype == torch.float32
    assert (features["layer"].grid, features["layer"].prefix) == ((2, 2), 1)
    torch.testing.assert_close(logits, teacher.logits[image, view], rtol=HALF, atol=1e-6)
    torch.testing.assert_close(features["layer"].values, teacher.layer[image, view], rtol=HALF, atol=1e-6)
    again, remembered = teacher.targets(cache, image[::-1], view[::-1])
    assert torch.equal(again, logits.flip(0))
    assert torch.equal(remembered["layer"].values, features["layer"].values.flip(0))
    assert len(teacher.seen) == 4


def test_only_new_views_are_computed_each_once():
    cache, teacher = TeacherCache(6, 2), Teacher()
    teacher.targets(cache, [0, 1], [0, 0])
    assert (cache.filled, teacher.seen) == (2, [(0, 0), (1, 0)])
    mixed, features = teacher.targets(cache, [1, 2, 1], [0, 0, 1])
    assert (cache.filled, teacher.seen) == (4, [(0, 0), (1, 0), (2, 0), (1, 1)])
    torch.testing.assert_close(mixed, teacher.logits[[1, 2, 1], [0, 0, 1]], rtol=HALF, atol=1e-6)
    torch.testing.assert_close(features["layer"].values, teacher.layer[[1, 2, 1], [0, 0, 1]], rtol=HALF, atol=1e-6)


def test_memory_is_two_bytes_a_number():
    cache, teacher = TeacherCache(6, 2), Teacher()
    assert cache.bytes == 0
    teacher.targets(cache, [0], [0])
    assert cache.bytes == 6 * 2 * (3 + 4 * 5) * 2


@pytest.mark.parametrize(("image", "view"), [([0, 6], [0, 0]), ([0, 1], [0, 2]), ([-1], [0])])
def test_places_outside_the_cache_are_refused(image, view):
    cache, teacher = TeacherCache(6, 2), Teacher(images=8, views=4)
    with pytest.raises(CacheError, match="expected images below 6 and views below 2, found image"):
        teacher.targets(cache, image, view)
    assert teacher.seen == []


def test_a_cache_that_is_too_large_is_refused_before_memory_is_taken():
    images = MAX_BYTES // (23 * 2) + 1
    cache, teacher = TeacherCache(images, 1), Teacher()
    with pytest.raises(CacheError, match=rf"the targets of {images} images x 1 views take 4.0 GiB, more than 4 GiB"):
        teacher.targets(cache, [0], [0])
    assert cache.bytes == 0


def test_targets_that_half_precision_cannot_hold_are_refused():
    cache, teacher = TeacherCache(6, 2), Teacher(scale=1e6)
    with pytest.raises(CacheError, match=r"too large for half precision \(65504\)"):
        teacher.targets(cache, [0], [0])


# In a training


def run(folder, cached, **options):
    """Twelve steps over two views of each image; the same views with and without a cache."""
    images = views(augmentation="pad_crop", flip=True, seed=7, views=2)
    collator = ViewCollator(processor(), processor(40))
    options = {"teacher_views": 2 if cached else None, "max_steps": 12, "learning_rate": 1e-6} | options
    training = trainer(
        folder,
        resnet(),
        teacher_resnet(),
        train=images,
        parts={"data_collator": collator, "fit_dataset": views()},
        **options,
    )
    training.train()
    return training


def test_cached_and_uncached_runs_give_equal_losses_on_the_same_views(tmp_path):
    """To 0.1 %: half precision rounds a target by at most 0.05 %.

    The student hardly moves, because training itself would carry tiny differences on.
    """
    cached, plain = run(tmp_path, True), run(tmp_path, False)
    pairs = [
        (entry, other)
        for entry, other in zip(cached.state.log_history, plain.state.log_history, strict=True)
        if "loss" in entry
    ]
    assert len(pairs) == 12
    for entry, other in pairs:
        names = [name for name in entry if name.startswith("loss")]
        assert len(names) == 6
        for name in names:
            assert entry[name] == pytest.approx(other[name], rel=1e-3), name
    assert any(entry["loss"] != other["loss"] for entry, other in pairs)
    assert cached.teaching.cache.filled == 24 * 2
    assert plain.teaching.cache is None


def test_later_epochs_cost_no_pass_of_the_teacher(tmp_path):
    passes = []
    images = views(augmentation="pad_crop", views=2)
    training = trainer(tmp_path, train=images, teacher_views=2, max_steps=12)
    training.prepare_distillation()
    handle = training.teaching.teacher.register_forward_hook(lambda module, given, output: passes.append(1))
    training.train()
    handle.remove()
    assert len(passes) == 6  # two epochs of three batches; four epochs were trained


def test_a_mirrored_view_has_targets_of_its_own(tmp_path):
    """Each remembered target is that of the view as it was shown, mirrored or not."""
    images = views(flip=True, views=2, seed=1)
    training = trainer(tmp_path, train=images, teacher_views=2, max_steps=6)
    training.train()
    collator = ViewCollator(processor(), processor())
    logits = []
    for view in (0, 1):
        images.set_epoch(view)
        batch = collator(images.__getitems__(list(range(24))))

        def never(places):
            raise AssertionError("every view was met in training")

        known, features = training.teaching.cache.targets(batch["index"], batch["view"], never, CPU)
        with torch.no_grad():
            shown = training.teaching.teacher(pixel_values=batch["pixel_values"], output_hidden_states=True)
        torch.testing.assert_close(known, shown.logits[:, list(CLASS_IDS)], rtol=HALF, atol=1e-4)
        name = training.pairs[0].teacher.name
        projected = training.subspaces[name].project(shown.hidden_states[1].flatten(2))
        torch.testing.assert_close(features[name].values, projected, rtol=HALF, atol=1e-3)
        logits.append(known)
    differs = (logits[0] - logits[1]).abs().amax(1) > 1e-2
    assert 4 < int(differs.sum()) < 20  # where one view of an image is mirrored and the other is not
