"""Batch norms measured again after a cut: what torch would have averaged, and nothing else touched."""

import models
import pytest
import torch

from secateur import program as programs
from secateur.errors import InputError
from secateur.norms import reestimate_norms


def test_norms_are_reestimated_as_torch_does_without_momentum() -> None:
    """Torch's own cumulative average (`momentum=None`), on the eager network in training mode, dropout off."""
    eager = models.Residual()
    module = programs.graph_module(models.export(eager, torch.zeros(2, *models.IMAGE)))
    batches = [(torch.from_numpy(models.images(20, seed)),) for seed in range(3)]
    assert reestimate_norms(module, batches) == 2
    eager.train()
    eager.drop.eval()
    for norm in (eager.norm, eager.inner_norm):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in batches:
            eager(*batch)
    for name in ("norm.running_mean", "norm.running_var", "inner_norm.running_mean", "inner_norm.running_var"):
        assert torch.allclose(module.get_buffer(name), eager.get_buffer(name), atol=1e-6), name


def test_reestimating_norms_leaves_weights_and_mode_alone() -> None:
    module = programs.graph_module(models.exported("residual"))
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    arguments = [node.args for node in module.graph.nodes]
    reestimate_norms(module, [(torch.from_numpy(models.images(8)),)])
    assert [node.args for node in module.graph.nodes] == arguments
    assert all(torch.equal(parameter, weights[name]) for name, parameter in module.named_parameters())
    once = module.get_buffer("norm.running_mean").clone()
    with torch.no_grad():
        module(torch.from_numpy(models.images(8, 1)))
    assert torch.equal(module.get_buffer("norm.running_mean"), once)


def test_reestimating_norms_needs_data_where_there_are_norms() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        reestimate_norms(programs.graph_module(models.exported("residual")), [])
    assert reestimate_norms(programs.graph_module(models.exported("perceptron")), []) == 0
