"""A whole explanation of a tiny student and teacher: figures, pictures, the folder; and what is refused."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy import stats

from analysis.test_projected_accuracy import with_varied_answers
from helpers import (
    NAMES,
    config,
    processor,
    resnet,
    save_teacher,
    teacher_resnet,
    with_confident_head,
    write_checkpoint,
    write_image_folder,
)
from reporting.samples import make_report, make_subspace
from subdistill_hf import ExplainOptions, explain_student
from subdistill_hf.config.output_folder import RUNS_FOLDER
from subdistill_hf.core.moments import collect_moments
from subdistill_hf.core.relevance import activations_and_contexts
from subdistill_hf.core.subspaces import Subspace, save_subspaces
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.errors import SubDistillError
from subdistill_hf.explain import run, subspaces
from subdistill_hf.explain.agreement import cosines
from subdistill_hf.explain.comparison import heatmaps_of, share_on_mark
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.images import test_images as images_to_explain
from subdistill_hf.explain.relevance import explain_images
from subdistill_hf.explain.subspaces import angles_between, excitations, teacher_of
from subdistill_hf.explain.summary import summary
from subdistill_hf.reporting.explained import Explanations
from subdistill_hf.reporting.report import RunReport
from subdistill_hf.teacher.fitting import FitRequest, fit_pairs
from subdistill_hf.teacher.teacher import Teacher

STAGES = [f"resnet.encoder.stages.{number}" for number in range(2)]
OTHERS = CLASS_NAMES[20:22]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a student, its teacher beside it, and the report of a run on images with a mark."""
    folder = tmp_path_factory.mktemp("explained")
    save_teacher(folder / "teacher", with_varied_answers(teacher_resnet(widths=(8, 12))))
    write_image_folder(folder / "images", (10, 11, 12, 20, 21), train=8, test=3)
    student = folder / "student"
    with_confident_head(resnet(widths=(4, 6))).save_pretrained(student)
    processor(40).save_pretrained(student)
    given = make_report() | {
        "classes": list(NAMES),
        "image_options": {"dataset": str(folder / "images"), "classes": list(NAMES), "mark": "plus", "seed": 1},
        "subspaces": [
            make_subspace(0, 8, 4) | {"kind": "prca", "teacher_layer": STAGES[0], "student_layer": STAGES[0]},
            make_subspace(1, 12, 6) | {"kind": "prca", "teacher_layer": STAGES[1], "student_layer": STAGES[1]},
        ],
    }
    given["dataset"]["mark"] = {"name": "plus", "classes": [NAMES[0]], "share": 1.0, "train_images": 8}
    given["dataset"]["mark"]["validation_images"] = 0
    RunReport.from_dict(given).save(student)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    options = ExplainOptions(
        teacher=str(folder / "teacher"), pictures=2, subspaces=True, other_subtasks=[", ".join(OTHERS)]
    )
    return explain_student(folder / "student", options)


def test_what_was_found_lies_beside_the_student(folder, found):
    assert Explanations.load(folder / "student") == found
    text = (folder / "student" / "explanations" / "explanations.json").read_text(encoding="utf-8")
    assert str(folder) not in text
    assert found.teacher == "teacher"
    assert found.student == "student"
    assert found.described == "the 9 test images of images"
    assert not list((folder / "student").glob(".explain*"))


def test_every_image_has_its_figures(found):
    assert len(found.images) == 9
    for image in found.images:
        assert image.label in NAMES
        assert image.target == image.teacher.answer
        for side in (image.teacher, image.student):
            assert len(side.heatmap) == found.grid == 8
            assert sum(map(sum, side.heatmap)) == pytest.approx(side.relevance, rel=1e-3, abs=1e-3)
            assert 0 < side.on_mark < 1
            assert 0 <= side.probability <= 1
        assert image.teacher.evidence >= 0
    assert found.agreement.answers.mean == pytest.approx(sum(image.same_answer for image in found.images) / 9)
    cosines = [image.cosine for image in found.images]
    assert found.agreement.explanations.cosine.mean == pytest.approx(sum(cosines) / 9)
    worst = [cosines[place] for place in found.agreement.most_different]
    assert worst == sorted(cosines)[: len(worst)]
    assert set(found.agreement.by_class) == {image.target for image in found.images}
    assert found.agreement.ceiling_from == "mirrored images"
    assert found.teacher_completeness.bound is None


def test_the_figures_of_an_image_are_those_of_its_heat_maps_and_answers(folder, found):
    pair = run.load_pair(folder / "student", ExplainOptions(teacher=str(folder / "teacher")))
    chosen = images_to_explain(pair.data, 100)
    targets = [NAMES.index(image.target) for image in found.images]
    maps = [torch.tensor([getattr(image, side).heatmap for image in found.images]) for side in ("teacher", "student")]
    for image, ours, theirs in zip(found.images, *maps, strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert image.cosine == pytest.approx(float(cosine), abs=1e-4)
        ranked = stats.spearmanr(ours.flatten(), theirs.flatten()).statistic
        assert image.rank_correlation == pytest.approx(ranked, abs=1e-4)
    for side, network in (("teacher", pair.teacher), ("student", pair.student)):
        told = [getattr(image, side) for image in found.images]
        logits = network.logits(network.pixels(chosen.images)).double()
        probabilities = logits.softmax(dim=1)[range(9), targets].tolist()
        assert [one.probability for one in told] == pytest.approx(probabilities, abs=1e-5)
        assert [one.answer for one in told] == [NAMES[place] for place in logits.argmax(dim=1).tolist()]
        own = torch.nn.functional.one_hot(torch.tensor(targets), 3).bool()
        evidence = logits[own] - logits.masked_fill(own, -torch.inf).amax(dim=1)
        assert [one.evidence for one in told] == pytest.approx(evidence.tolist(), abs=1e-4)
        explained = explain_images(network, chosen.images, targets, "gradient_x_input", show=False)
        shares = map(share_on_mark, [network] * 9, explained.relevance, chosen.marks)
        assert [one.on_mark for one in told] == pytest.approx(list(shares), rel=1e-3)
    agreement = found.agreement
    for name in agreement.by_class:
        alike = [image.cosine for image in found.images if image.target == name]
        assert agreement.by_class[name].cosine.mean == pytest.approx(sum(alike) / len(alike))
    assert len(agreement.by_class) > 1
    mirrored = [image.flip(2) for image in chosen.images]
    again = explain_images(pair.teacher, mirrored, targets, "gradient_x_input", show=False).relevance.flip(2)
    ceiling = cosines(maps[0], heatmaps_of(pair.teacher, again, chosen.images)).mean()
    assert agreement.ceiling.cosine.mean == pytest.approx(ceiling, abs=1e-4)


@pytest.mark.parametrize(
    ("worst", "expected"),
    [([5, 2, 7, 1], [0, 2, 5, 8]), ([0, 8, 3], [0, 1, 2, 8])],
)
def test_half_of_the_pictures_are_of_what_differs_most_and_the_others_are_spread(worst, expected):
    assert run._pictured(worst, 9, 4) == expected


def test_subspaces_are_shown_on_images_spread_over_all():
    assert subspaces._some(range(9)).indices == list(range(9))
    shown = subspaces._some(range(1500)).indices
    assert (len(shown), shown[0], shown[-1]) == (subspaces.MOST_IMAGES, 0, 1499)


def test_some_images_have_pictures_of_one_scale(folder, found):
    pictured = [image for image in found.images if image.picture is not None]
    assert len(pictured) == 2
    assert found.images[found.agreement.most_different[0]] in pictured
    place = folder / "student" / "explanations"
    for image in pictured:
        assert image.scale > 0
        for name in (image.picture, image.teacher.picture, image.student.picture):
            assert Image.open(place / name).size == (160, 160)
        assert Image.open(place / image.panel).width > 480
    assert (place / "overview.png").is_file()


def test_faithfulness_stands_beside_random_orders(found):
    assert [(curve.network, curve.ranking) for curve in found.faithfulness] == [
        ("teacher", "gradient_x_input"),
        ("teacher", "random"),
        ("student", "gradient_x_input"),
        ("student", "random"),
    ]
    starts = [curve.probability[0] for curve in found.faithfulness]
    assert starts[0] == starts[1]
    assert starts[0] == pytest.approx(sum(image.teacher.probability for image in found.images) / 9)


def test_each_compared_layer_is_shown_with_the_places_that_excite_it(folder, found):
    assert [layer.teacher_layer for layer in found.subspaces] == STAGES
    for layer, counts in zip(found.subspaces, ([1, 2, 4], [1, 2, 4, 6]), strict=True):
        assert layer.dimensions == counts[-1]
        assert [one.dimensions for one in layer.accuracies] == counts
        assert len(layer.directions) == 3
        for direction in layer.directions:
            for places in (direction.most, direction.least):
                assert len({place.image for place in places}) == 3
            for place in (*direction.most, *direction.least):
                assert (folder / "student" / "explanations" / place.picture).is_file()
            assert Image.open(folder / "student" / "explanations" / direction.picture).width > 3 * 160
        (angles,) = layer.angles
        assert angles.subtask == ", ".join(OTHERS)
        assert len(angles.degrees) == layer.dimensions
        assert angles.by_chance == 0.5
    text = summary(found, "here")
    assert f"overlap of the subspace of {STAGES[0]}" in text
    assert text.endswith("The explanations are in here")


def test_coordinates_and_relevance_are_those_of_their_definition(folder):
    options = ExplainOptions(teacher=str(folder / "teacher"))
    pair = run.load_pair(folder / "student", options)
    teacher, data = teacher_of(pair.teacher), pair.data
    layers = subspaces.layer_pairs(pair, teacher, pair.report.subspaces, data)
    collate = ViewCollator(processor())
    fitted = subspaces.fitted(pair.report, teacher, layers, data.views("train"), collate)
    images = subspaces._some(data.views("test"))
    excited = excitations(teacher, [layer.teacher for layer in layers], fitted, images, collate)[STAGES[1]]
    kept = {}
    hook = teacher.model.get_submodule(STAGES[1]).register_forward_hook(
        lambda module, inputs, output: kept.update(a=output.requires_grad_().retain_grad() or output)
    )
    pixels = pair.teacher.pixels([images.dataset.image(0)]).requires_grad_()
    margin = teacher.logits(pixels).topk(2, dim=1).values[0]
    (margin[0] - margin[1]).backward()
    hook.remove()
    subspace = fitted[STAGES[1]]
    u = subspace.basis[:, 0].double()
    t = torch.einsum("d,dp->p", u, kept["a"][0].detach().flatten(1).double() - subspace.mean[:, None].double())
    r = t * torch.einsum("d,dp->p", u, kept["a"].grad[0].flatten(1).double())
    assert float(excited.mean[0, 0]) == pytest.approx(float(t.mean()), rel=1e-4, abs=1e-5)
    assert float(excited.relevance[0, 0]) == pytest.approx(float(r.sum()), rel=1e-4, abs=1e-5)
    assert float(excited.largest[0, 0, 0]) == pytest.approx(float(t.max()), rel=1e-4, abs=1e-5)
    assert int(excited.smallest[0, 0, 2]) == int(t.argmin())
    same = angles_between("itself", subspace, subspace)
    assert max(same.degrees) < 0.1
    assert same.overlap == pytest.approx(1)


def subspaces_again(folder):
    """The pair of a folder, its teacher, the layers, and the run's subspaces of them."""
    pair = run.load_pair(folder / "student", ExplainOptions(teacher=str(folder / "teacher")))
    teacher = teacher_of(pair.teacher)
    layers = subspaces.layer_pairs(pair, teacher, pair.report.subspaces, pair.data)
    collate = ViewCollator(pair.teacher.classifier.processor)
    return pair, teacher, layers, subspaces.fitted(pair.report, teacher, layers, pair.data.views("taught"), collate)


def test_accuracies_and_places_are_those_of_the_layers_projected_by_hand(folder, found):
    pair, teacher, _, fitted = subspaces_again(folder)
    images = pair.data.views("test")
    pixels = pair.teacher.pixels([images.image(place) for place in range(9)])
    labels = torch.tensor(images.labels)

    def answers(layer, replaced):
        hook = teacher.model.get_submodule(layer).register_forward_hook(lambda module, inputs, a: replaced(a))
        with torch.no_grad():
            logits = teacher.logits(pixels)
        hook.remove()
        return logits.argmax(dim=1)

    for layer in found.subspaces:
        subspace, kept = fitted[layer.teacher_layer], []
        own = answers(layer.teacher_layer, kept.append)
        centred = kept[0] - (mean := subspace.mean.float()[:, None, None])
        assert layer.unprojected_accuracy == pytest.approx(float((own == labels).double().mean()))
        for one in layer.accuracies:
            u = subspace.basis[:, : one.dimensions].float()
            projected = torch.einsum("dk,ek,behw->bdhw", u, u, centred) + mean
            found_again = answers(layer.teacher_layer, lambda a, projected=projected: projected)
            assert one.accuracy == pytest.approx(float((found_again == labels).double().mean()))
        for number, direction in enumerate(layer.directions):
            coordinates = torch.einsum("d,bdhw->bhw", subspace.basis[:, number].float(), centred)
            for sign, places in ((1, direction.most), (-1, direction.least)):
                largest, at = (sign * coordinates).flatten(1).max(dim=1)
                order = largest.argsort(descending=True)[:3].tolist()
                assert [place.image for place in places] == [f"test image {image}" for image in order]
                assert [place.label for place in places] == [NAMES[labels[image]] for image in order]
                told = [(place.row, place.column) for place in places]
                assert told == [divmod(int(at[image]), coordinates.shape[2]) for image in order]
                values = [sign * place.coordinate for place in places]
                assert values == pytest.approx(largest[order].tolist(), rel=1e-4, abs=1e-5)
    assert len({one.accuracy for layer in found.subspaces for one in layer.accuracies}) > 1


def test_angles_are_those_to_the_subspaces_of_the_other_images_without_the_mark(folder, found):
    pair, teacher, _, fitted = subspaces_again(folder)
    entry = ", ".join(OTHERS)
    options = ExplainOptions(teacher=str(folder / "teacher"), subspaces=True, other_subtasks=[entry])
    others = subspaces.other_subtasks(pair, options)[entry]
    assert others.marking is None
    assert pair.data.marking is not None
    assert others.subtask.teacher_ids == (20, 21)
    images = others.views("train")
    pixels = pair.teacher.pixels([images.image(place) for place in range(len(images))])
    restricted = Teacher(teacher.model, (20, 21))
    moments = collect_moments(activations_and_contexts(restricted.logits, teacher.model, STAGES, [pixels]))
    for layer, dimensions in zip(found.subspaces, (4, 6), strict=True):
        own = fitted[layer.teacher_layer].basis.double()
        other = Subspace.fit(moments[layer.teacher_layer], dimensions, "prca").basis.double()
        shared = torch.trace(own @ own.T @ other @ other.T) / dimensions
        assert layer.angles[0].overlap == pytest.approx(float(shared), abs=1e-4)
        assert float(torch.tensor(layer.angles[0].degrees).deg2rad().cos().square().mean()) == pytest.approx(
            float(shared), abs=1e-4
        )
        assert shared < 0.99


@pytest.mark.parametrize("basis", ["prca", "random"])
def test_subspaces_that_are_gone_are_fitted_again_as_the_run_fitted_them(folder, tmp_path, basis):
    pair, teacher, layers, _ = subspaces_again(folder)
    images, collate = pair.data.views("taught"), ViewCollator(pair.teacher.classifier.processor)
    reported = tuple(replace(one, kind=basis) for one in pair.report.subspaces)
    digests = set()
    for positions, seed in [(None, 1), (2, 1), (2, 5)]:
        given = {} if positions is None else {"positions": positions}
        report = replace(
            pair.report,
            hyperparameters=given,
            image_options={**pair.report.image_options, "seed": seed},
            subspaces=reported,
        )
        request = FitRequest.for_training(config(tmp_path, seed=seed, per_device_eval_batch_size=5, **given))
        expected = fit_pairs(teacher, layers, images, collate, request, basis)
        again = subspaces.fitted(report, teacher, layers, images, collate)
        for name in STAGES:
            torch.testing.assert_close(again[name].basis, expected[name].basis, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(again[name].energies, expected[name].energies, rtol=1e-4, atol=1e-5)
        digests.add(str(again[STAGES[1]].basis.round(decimals=2)))
    assert len(digests) == 3 - (basis == "random")  # a random basis does not depend on positions


def test_the_subspaces_of_the_last_checkpoint_are_those_of_the_run(folder, tmp_path):
    pair, teacher, layers, fitted = subspaces_again(folder)
    images, collate = pair.data.views("test"), ViewCollator(pair.teacher.classifier.processor)
    place = tmp_path / RUNS_FOLDER / pair.report.published_result.method
    kept = {name: replace(one, count=7) for name, one in fitted.items()}
    save_subspaces(kept, write_checkpoint(place / "checkpoint-3", 3))
    again = subspaces.subspaces_of(tmp_path, pair.report, teacher, layers, images, collate)
    assert {one.count for one in again.values()} == {7}
    save_subspaces({STAGES[0]: kept[STAGES[0]]}, place / "checkpoint-3")  # of another run
    again = subspaces.subspaces_of(tmp_path, pair.report, teacher, layers, images, collate)
    assert [*again] == STAGES
    assert 7 not in {one.count for one in again.values()}


def test_images_of_the_users_own_and_another_class(folder, tmp_path):
    options = ExplainOptions(
        teacher=str(folder / "teacher"),
        images=[str(folder / "images" / "test" / NAMES[1])],
        target_class=NAMES[2],
        pictures=0,
        output_dir=str(tmp_path / "mine"),
        method="integrated_gradients",
    )
    found = explain_student(folder / "student", options)
    assert [image.label for image in found.images] == [NAMES[1]] * 3
    assert {image.target for image in found.images} == {NAMES[2]}
    assert {image.teacher.on_mark for image in found.images} == {None}
    assert found.student_completeness.error <= found.student_completeness.bound == 0.01
    assert not math.isnan(found.agreement.explanations.cosine.mean)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"explanations.json"}
    assert json.loads((tmp_path / "mine" / "explanations.json").read_text())["method"] == "integrated_gradients"
    again = explain_student(folder / "student", options)
    assert again == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_class": "no such"}, "target_class='no such': expected one of the student's classes"),
        ({"images": ["nowhere.png"]}, "there is no file or folder nowhere.png"),
        ({"teacher": "./nowhere"}, "teacher './nowhere' cannot be loaded"),
        ({"teacher": None}, "does not say which teacher taught the student: give --teacher"),
    ],
)
def test_what_does_not_fit_is_refused(folder, changed, message, monkeypatch):
    if "teacher" in changed and changed["teacher"] is None:
        monkeypatch.setattr("subdistill_hf.explain.pair.EMBEDDED_TEACHERS", ())
    given = {"teacher": str(folder / "teacher"), "output_dir": str(folder / "refused")} | changed
    with pytest.raises(SubDistillError, match=message):
        explain_student(folder / "student", ExplainOptions(**given))
    assert not (folder / "refused").exists()


def test_a_folder_of_other_files_is_left_alone(folder, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    options = ExplainOptions(teacher=str(folder / "teacher"), output_dir=str(tmp_path))
    monkeypatch.setattr(run, "load_pair", lambda *given: pytest.fail("models were loaded"))
    with pytest.raises(ExplainError, match="already holds other files: give another --output_dir"):
        explain_student(folder / "student", options)


def test_an_empty_folder_is_taken_also_the_one_we_are_in(folder, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    options = ExplainOptions(
        teacher=str(folder / "teacher"), images=[str(tmp_path / "a.png")], output_dir=".", pictures=0
    )
    for _ in range(2):
        explain_student(folder / "student", options)
        assert [path.name for path in (tmp_path / "made").iterdir()] == ["explanations.json"]
        monkeypatch.chdir(tmp_path / "made")


def test_a_teacher_without_the_classes_is_refused(folder, tmp_path):
    save_teacher(tmp_path / "other", resnet(names=["a", "b", "c"], widths=(4, 4)))
    with pytest.raises(SubDistillError, match=f"the teacher has no class '{NAMES[0]}'"):
        explain_student(folder / "student", ExplainOptions(teacher=str(tmp_path / "other")))


def test_another_subtask_that_is_not_there_is_refused_before_any_work(folder, monkeypatch):
    monkeypatch.setattr(run, "explain_both", lambda *given: pytest.fail("images were explained"))
    options = ExplainOptions(teacher=str(folder / "teacher"), subspaces=True, other_subtasks=["no such, nor this"])
    with pytest.raises(SubDistillError, match="unknown class 'no such'"):
        explain_student(folder / "student", options)


@pytest.mark.parametrize("given", [True, False])
def test_without_the_images_of_the_run_there_are_no_subspaces(folder, tmp_path, given):
    shutil.copytree(folder / "student", tmp_path / "student")
    report = json.loads((tmp_path / "student" / "report.json").read_text(encoding="utf-8"))
    report["image_options"]["dataset"] = str(tmp_path / "gone")
    RunReport.from_dict(report).save(tmp_path / "student")
    images = [str(folder / "images" / "test")] if given else []
    options = ExplainOptions(teacher=str(folder / "teacher"), images=images, subspaces=True, most_images=2)
    with pytest.raises(ExplainError) as error:
        explain_student(tmp_path / "student", options)
    hint = ": leave out --subspaces, which needs them"
    assert str(error.value).endswith(hint if given else f"{hint}, and give --images, files or folders")


def test_a_student_of_no_known_run_has_no_subspaces(folder, tmp_path):
    student = tmp_path / "student"
    resnet(widths=(4, 6)).save_pretrained(student)
    processor().save_pretrained(student)
    options = ExplainOptions(
        teacher=str(folder / "teacher"), images=[str(folder / "images" / "test")], subspaces=True, most_images=2
    )
    with pytest.raises(ExplainError, match="compared no subspaces, or its report is gone"):
        explain_student(student, options)
