"""A method or a basis is one entry: what is made up here trains, and is known everywhere by its entry alone."""

import math
from pkgutil import resolve_name

import pytest
import torch
import torch.nn.functional as F

from helpers import trainer, weights_of
from subdistill_hf.config.bases import BASES, Basis
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.methods import METHODS, Method, method_label
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.errors import DistillationError
from subdistill_hf.losses import LayerLoss, SubspaceAlignment
from subdistill_hf.losses.building import logit_loss, make_layer_loss
from subdistill_hf.losses.subspace import same_positions

PAIR = LayerPair(LayerShape("theirs", 6, (2, 2), 0), LayerShape("ours", 4, (2, 2), 0))


class Cosine(LayerLoss):
    """One minus the mean cosine of both sides' averages over channels."""

    def loss(self, student, target):
        h, a = same_positions(student, target)
        return 1 - F.cosine_similarity(h.mean(dim=1), a.mean(dim=1), dim=1).mean()


class Doubled(SubspaceAlignment):
    """Twice the loss in the subspace."""

    def loss(self, student, target):
        return 2 * super().loss(student, target)


def squared_difference(student, teacher, temperature, scale):
    return scale * F.mse_loss(student / temperature, teacher / temperature)


def last_channels(moments):
    return torch.arange(moments.width, dtype=torch.float64).diag()


@pytest.fixture
def method(monkeypatch):
    """Adds an entry for the time of a test, and gives its name."""

    def add(entry):
        monkeypatch.setitem(METHODS, "made_up", entry)
        return "made_up"

    return add


def losses_of(run):
    return [entry for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_names_losses_that_exist(name):
    entry = METHODS[name]
    assert entry.logit_loss is None or callable(resolve_name(entry.logit_loss))
    assert entry.layer_loss is None or issubclass(resolve_name(entry.layer_loss), LayerLoss)
    assert entry.label
    assert entry.summary


@pytest.mark.parametrize("loss", [Cosine, Doubled])
def test_a_made_up_layer_loss_trains(tmp_path, method, loss):
    in_subspaces = issubclass(loss, SubspaceAlignment)
    name = method(Method("Mine", "a test", layer_loss=loss, layer_weight=3.0, uses_subspaces=in_subspaces))
    run = trainer(tmp_path, method=name)
    before = weights_of(run.model)
    run.train()
    assert run.args.weights()["layer"] == 3
    assert all(type(each) is loss for each in run.distillation.alignments)
    assert bool(run.subspaces) == in_subspaces
    assert all(math.isfinite(entry["loss_layer/resnet.encoder.stages.0"]) for entry in losses_of(run))
    assert not torch.equal(before["classifier.1.weight"], run.model.state_dict()["classifier.1.weight"])
    assert method_label(name) == "Mine"


def test_a_made_up_logit_loss_trains_with_its_options(tmp_path, method):
    name = method(
        Method("Mine", "a test", logit_loss=squared_difference, logit_options={"scale": "dkd_beta"}, min_classes=3)
    )
    first = []
    for scale in (1.0, 2.0):
        run = trainer(tmp_path, method=name, dkd_beta=scale)
        run.train()
        first.append(losses_of(run)[0]["loss_kd"])
    assert first[1] == pytest.approx(2 * first[0], rel=1e-5)


def test_a_made_up_basis_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(BASES, "last", Basis("last channels", last_channels, needs_context=False))
    run = trainer(tmp_path, basis="last", layers=["resnet.encoder.stages.1=resnet.encoder.stages.1"])
    run.train()
    (subspace,) = run.subspaces.values()
    assert subspace.kind == "last"
    assert subspace.basis[:, 0].argmax() == subspace.width - 1
    assert losses_of(run)[-1]["loss"] < math.inf


def test_a_layer_loss_and_its_weight_come_together():
    for options in ({"layer_loss": Cosine}, {"layer_weight": 1.0}):
        with pytest.raises(ValueError, match="expected layer_loss and layer_weight together"):
            Method("Mine", "a test", **options)


def test_what_an_entry_does_not_have_is_refused():
    logits = torch.zeros(2, 3)
    with pytest.raises(DistillationError, match="'kd' has no layer loss"):
        make_layer_loss(DistillationOptions(method="kd"), PAIR, None, "orthogonal")
    with pytest.raises(DistillationError, match="'subdistill' needs a subspace of teacher layer 'theirs'"):
        make_layer_loss(DistillationOptions(), PAIR, None, "orthogonal")
    with pytest.raises(DistillationError, match="'scratch' has no loss on the logits"):
        logit_loss(DistillationOptions(method="scratch"), logits, logits, None)
    with pytest.raises(DistillationError, match="'dkd' needs `labels` in the batch"):
        logit_loss(DistillationOptions(method="dkd"), logits, logits, None)
