"""Several processes compute what one would: sums, gathered answers, batch norms and their gradients."""

import copy

import models
import pytest
import torch
from together import together
from torch.nn import functional

from secateur import distributed
from secateur import program as programs


def test_a_process_alone_is_a_group_of_one() -> None:
    value = torch.arange(3.0)
    assert (distributed.size(), distributed.rank()) == (1, 0)
    for same in (distributed.own(value), distributed.summed(value), distributed.gathered(value)):
        assert same.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("count", [2, 3])
def test_every_example_belongs_to_one_process(count: int) -> None:
    parts = together(lambda: distributed.own(torch.arange(7)).tolist(), count)
    assert sorted(number for part in parts for number in part) == list(range(7))


def test_answers_of_unlike_numbers_are_gathered_everywhere_in_the_order_of_ranks() -> None:
    def work() -> list[list[int]]:
        return distributed.gathered(torch.full((distributed.rank(), 2), distributed.rank())).tolist()

    assert together(work, 3) == [[[1, 1], [2, 2], [2, 2]]] * 3


def test_what_the_first_process_has_reaches_all() -> None:
    sent = torch.tensor([3, 1, 4], dtype=torch.uint8)

    def work() -> list[int]:
        return distributed.from_first(sent if distributed.rank() == 0 else sent[:0]).tolist()

    assert together(work) == [[3, 1, 4]] * 2


def test_gradients_are_summed_whatever_their_types_and_those_that_are_missing_stay_missing() -> None:
    def work() -> list[object]:
        parameters = [torch.nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.float32, torch.float64)]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, distributed.rank() + 1.0)
        unused = torch.nn.Parameter(torch.zeros(1))
        distributed.sum_gradients([*parameters, unused])
        return [p.grad.tolist() for p in parameters if p.grad is not None] + [unused.grad]

    assert together(work) == [[[3.0, 3.0], [3.0, 3.0], None]] * 2


def test_batch_norms_of_two_processes_train_as_those_of_one() -> None:
    """Outputs, gradients and running statistics of a network of norms, each process with another half of the batch."""
    network = models.Residual()
    network.drop.p = 0.0  # what it draws is each process's own
    module = programs.graph_module(models.export(network, torch.from_numpy(models.images(2))))
    programs.set_training(module, True)
    x = torch.from_numpy(models.images(7, 0))
    target = torch.arange(7) % models.CLASSES

    def work() -> list[torch.Tensor]:
        copied = copy.deepcopy(module)
        with distributed.synchronised_norms(copied):
            loss = functional.cross_entropy(copied(distributed.own(x)), distributed.own(target), reduction="sum")
            loss.backward()
        distributed.sum_gradients(copied.parameters())
        total = distributed.summed(loss.detach())
        return [t.numpy() for t in (total, *(p.grad for p in copied.parameters()), *copied.buffers()) if t is not None]

    alone = work()
    for seen in together(work):
        for one, two in zip(alone, seen, strict=True):
            torch.testing.assert_close(torch.as_tensor(two), torch.as_tensor(one), rtol=1e-4, atol=1e-5)


def test_the_graph_is_put_back_after_training_together() -> None:
    def work() -> bool:
        module = programs.graph_module(models.exported("residual"))
        before = [node.target for node in module.graph.nodes]
        with distributed.synchronised_norms(module):
            during = [node.target for node in module.graph.nodes]
        return before != during and before == [node.target for node in module.graph.nodes]

    assert together(work) == [True, True]
