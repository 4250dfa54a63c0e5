"""The nodes of a cluster: how many workers they run, and whether they see a study's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merganser.errors import ResourceError
from merganser.workers.crew import CORES


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's id.
        name: its name in messages.
        cores: number of its cores.
        gpus: number of its GPUs.
    """

    id: str
    name: str
    cores: int
    gpus: int


def shared(
    nodes: Sequence[Node], count: int | None, gpus: int, threads: int | None
) -> tuple[int, int]:
    """Return the number of workers, and the cores per worker.

    Args:
        nodes: the cluster's nodes.
        count: the number of workers; None for as many as fit.
        gpus: GPUs per worker.
        threads: threads per worker. None for an equal share of the cores of a node with GPUs, and for
            :data:`CORES` or as many as let ``count`` workers fit on others.

    Raises:
        ResourceError: no node can run a worker.
    """

    def places(cores: int) -> int:
        return sum(
            min([node.cores // cores, *([node.gpus // gpus] if gpus else [])]) for node in nodes
        )

    fit = [node for node in nodes if node.gpus >= gpus and node.cores >= (threads or 1)]
    if not fit:
        needs = f"{threads or 1} cores" + (f" and {gpus} GPUs" if gpus else "")
        has = ", ".join(f"{node.name}: {node.cores} cores, {node.gpus} GPUs" for node in nodes)
        raise ResourceError(f"a worker needs {needs} on one node of the Ray cluster ({has})")
    cores = threads
    if cores is None and gpus:
        cores = max(1, min(node.cores // (node.gpus // gpus) for node in fit))
    if cores is None:
        most = min(CORES, *(node.cores for node in fit), CORES)
        cores = next((n for n in range(most, 0, -1) if places(n) >= (count or 1)), 1)
    return count or max(1, places(cores)), cores


def refusal(node: str, found: Mapping[str, Sequence[str]]) -> str:
    """Return why a node cannot take part in a study; empty if it can.

    Args:
        node: its name.
        found: what it says about the files; see :func:`merganser.workers.inputs.make_look`.
    """
    if found["lacking"]:
        return f"node {node} has no {found['lacking'][0]}; install the same version on every node"
    for key, verb, advice in (
        ("unseen", "does not see", "put it where every node sees it at this path"),
        ("other", "sees another", "the file must be the same on every node"),
    ):
        if files := found[key]:
            more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            return f"node {node} {verb} {files[0]}{more}; {advice}"
    return ""
