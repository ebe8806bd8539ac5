"""Runs a function in several processes of one group, as torchrun starts them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from secateur import distributed


def together(work: Callable[[], Any], count: int = 2) -> list[Any]:
    """What each process returns, by its rank."""
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    workers = [
        context.Process(target=_join, args=(work, rank, count, port, send)) for rank, (_, send) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    for _, send in pipes:
        send.close()
    try:
        told = [receive.recv() for receive, _ in pipes]
    finally:
        for worker in workers:
            worker.join(30)
            worker.kill()
    for outcome in told:
        if isinstance(outcome, str):
            raise AssertionError(outcome)
    return [outcome[0] for outcome in told]


def _join(work: Callable[[], Any], rank: int, count: int, port: int, send: Connection) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with distributed.joined():
            send.send((work(),))
    except Exception:
        send.send(traceback.format_exc())
