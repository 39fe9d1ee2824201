"""The folder of a made-up run that has everything: pictures of errors, heat maps and pictures of subspaces."""

from dataclasses import replace

from PIL import Image

from reporting.samples import make_report, parsed
from reporting.test_explained import make_explanations
from subdistill_hf.reporting.explained import EXPLANATIONS_FOLDER, ExcitedPlace, FlippingCurve
from subdistill_hf.reporting.reported_answers import THUMBNAILS_FOLDER


def full_report():
    """A report with all that a page can show."""
    report = make_report()
    bins = [{"low": i / 15, "high": (i + 1) / 15, "images": 0} for i in range(14)]
    bins.append({"low": 14 / 15, "high": 1.0, "images": 500, "confidence": 0.97, "accuracy": 0.95})
    for result in report["results"]:
        result["calibration"] = {"expected_error": 0.0213, "bins": bins}
    report["wrong_answers"] = [
        {
            "image": 123 + label,
            "label": label,
            "answer": 4,
            "probability": 0.987 - label / 100,
            "label_probability": 0.012,
            "teacher_answer": label,
            "teacher_probability": 0.75,
        }
        for label in (0, 2)
    ]
    file = {"precision": "float32", "size_bytes": 400_000, "agreement": 1.0, "largest_difference": 0.004}
    file |= {"name": "model.onnx", "accuracy": 0.956, "latency_ms": {"median": 1, "low": 1, "high": 2, "runs": 50}}
    export = {"format": "onnx", "runtime": "onnxruntime 1.32.0", "machine": "a processor", "preprocessing": "inside"}
    export |= {"network_difference": 1e-6, "images": "the 500 test images", "image_count": 500, "files": [file]}
    report["exports"] = [export]
    return report


def write_picture(folder, name, colour, size=32):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (size, size), colour).save(folder / name)


def write_run(folder, report=None):
    """A report, and a picture of one of its two errors."""
    parsed(full_report() if report is None else report).save(folder)
    write_picture(folder / THUMBNAILS_FOLDER, "123.webp", "red")
    return folder


def write_explanations(folder, images=2):
    """Explanations beside a student, with pictures."""
    found = make_explanations()
    (image,) = found.images
    place = folder / EXPLANATIONS_FOLDER
    for name, colour in {"000.png": "white", "000-teacher.png": "orange", "000-student.png": "blue"}.items():
        write_picture(place, name, colour, 160)
    write_picture(place, "place.png", "green", 160)
    excited = (
        ExcitedPlace(
            image="test image 3", label="club", row=0, column=1, coordinate=3, relevance=0.5, picture="place.png"
        ),
    )
    layer = replace(found.subspaces[0], teacher_layer="resnet.encoder.stages.0")
    layer = replace(layer, directions=tuple(replace(one, most=excited) for one in layer.directions))
    answers = found.agreement.answers
    points = {"flipped": (0, 1), "probability": (0.9, 0.2), "area": 0.55, "interval": answers}
    curve = FlippingCurve(network="student", ranking="random", **points)
    found = replace(
        found,
        images=tuple(replace(image, name=f"test image {number}") for number in range(images)),
        subspaces=(layer,),
        faithfulness=(curve,),
    )
    found.save(place)
    return found
