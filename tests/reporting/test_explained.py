"""Explanations are the same object in memory and on disk, and a file that holds none is refused in one message."""

import json
from dataclasses import replace

import pytest

from subdistill_hf.reporting.explained import (
    EXPLANATIONS_FILE,
    EXPLANATIONS_FOLDER,
    AccuracyAtDimensions,
    Agreement,
    Completeness,
    ExcitedPlace,
    ExplainedAnswer,
    ExplainedDirection,
    ExplainedImage,
    ExplainedLayer,
    Explanations,
    ExplanationsError,
    FlippingCurve,
    Interval,
    Similarity,
    SubspaceAngles,
)


def make_explanations():
    interval = Interval(mean=0.5, low=0.25, high=0.75, count=8)
    similarity = Similarity(cosine=interval, rank_correlation=interval)
    answer = ExplainedAnswer(
        answer="club",
        probability=0.9,
        evidence=2.0,
        baseline_evidence=0.5,
        relevance=1.5,
        heatmap=((0.5, 0.25), (0.5, 0.25)),
        picture="000-teacher.png",
    )
    image = ExplainedImage(
        name="test image 3",
        label="club",
        target="club",
        teacher=answer,
        student=replace(answer, answer="spade", picture="000-student.png"),
        cosine=0.5,
        rank_correlation=0.25,
        scale=0.1,
        picture="000.png",
        panel="000-panel.png",
    )
    place = ExcitedPlace(image="test image 3", row=0, column=1, coordinate=3.0, relevance=0.5)
    direction = ExplainedDirection(number=1, energy=2.0, eigenvalue=4.0, relevance=0.5, by_class={"club": 1.0})
    layer = ExplainedLayer(
        teacher_layer="layer1",
        student_layer="stages.0",
        kind="prca",
        width=16,
        dimensions=1,
        total_energy=3.0,
        energies=(2.0,),
        eigenvalues=(4.0,),
        directions=(replace(direction, most=(place,)),),
        accuracies=(AccuracyAtDimensions(dimensions=1, accuracy=0.5),),
        unprojected_accuracy=0.75,
        angles=(SubspaceAngles(subtask="dice", degrees=(10.0,), overlap=0.97, by_chance=0.0625),),
    )
    return Explanations(
        created="2026-11-29",
        method="integrated_gradients",
        method_label="integrated gradients",
        teacher="glyphs-resnet",
        student="student",
        classes=("club", "spade"),
        described="1 of the 200 test images of glyphs-100",
        grid=2,
        teacher_completeness=Completeness(error=0.001, bound=0.01, evaluations=32),
        student_completeness=Completeness(error=0.002, bound=0.01, evaluations=64),
        images=(image,),
        agreement=Agreement(
            answers=interval,
            explanations=similarity,
            ceiling=similarity,
            ceiling_from="mirrored images",
            by_class={"club": similarity},
            most_different=(0,),
        ),
        faithfulness=(
            FlippingCurve(
                network="teacher",
                ranking="random",
                flipped=(0.0, 1.0),
                probability=(0.9, 0.5),
                area=0.7,
                interval=interval,
            ),
        ),
        subspaces=(layer,),
    )


def test_explanations_come_back_from_the_folder_and_from_that_of_the_student(tmp_path):
    explanations = make_explanations()
    folder = tmp_path / EXPLANATIONS_FOLDER
    folder.mkdir()
    explanations.save(folder)
    assert Explanations.load(folder) == Explanations.load(tmp_path) == explanations


def test_images_say_whether_both_answer_alike():
    image = make_explanations().images[0]
    assert not image.same_answer
    assert replace(image, student=image.teacher).same_answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found no file"),
        ("<html>", "expected JSON"),
        ("[]", r"expected an object, found \[\]"),
        (json.dumps({"created": 1}), "expected a text in 'created', found 1"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / EXPLANATIONS_FILE).write_text(text)
    with pytest.raises(ExplanationsError, match=message):
        Explanations.load(tmp_path)
