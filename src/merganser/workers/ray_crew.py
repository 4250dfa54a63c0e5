"""Workers on the nodes of a Ray cluster: long-lived actors, which run the loop of every worker."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from merganser import system
from merganser.errors import InputError, MerganserError
from merganser.workers.claims import WORKER
from merganser.workers.crew import PATIENCE, Crew, End, Where
from merganser.workers.inputs import Input, make_look
from merganser.workers.nodes import Node, refusal, shared
from merganser.workers.ray_member import Member as Worker

NAMESPACE = "merganser"
"""Ray's namespace of the actors' names."""

OBJECTS = 100 * 2**20
"""Bytes of the object store of a cluster that is started here; workers put nothing into it."""

LATE = 60.0
"""Seconds after which it is said that a worker has not started, and after which a node counts as silent."""


@dataclass
class Actor:
    """A worker on a node.

    Attributes:
        handle: Ray's handle.
        place: the reference of its node and process.
        result: the reference of its result.
    """

    handle: Any
    place: Any
    result: Any


class RayCrew(Crew[Actor]):
    """Workers on the nodes of a Ray cluster.

    Entering the context connects to the cluster, or starts one on this machine if there is none, and checks
    that every node sees the study's files.

    Args:
        home: the study's or the merge's folder.
        where: the number of workers and the cluster's address.
        gpus: GPUs per worker; 0 for workers on CPUs.
        threads: threads per worker; None for a share of the node's cores.
        inputs: the study's files.
        most, on_warning: as for :class:`Crew`.
        scores: whether the workers score models, for which GPUs are of use.
    """

    def __init__(
        self,
        home: Path,
        where: Where,
        gpus: int,
        threads: int | None,
        inputs: Sequence[Input],
        *,
        most: int,
        on_warning: Callable[[str], None],
        scores: bool = True,
    ) -> None:
        super().__init__(0, most=most, on_warning=on_warning)
        self._scores = scores
        self._home = home
        self._where = where
        self._gpus = gpus
        self._threads = threads
        self._cores = 1
        self._inputs = inputs
        self._groups: dict[int, Any] = {}
        self._connected = False
        self._began = time.monotonic()
        self._said = False

    def __enter__(self) -> RayCrew:
        self._connected = connect(self._where.address, self.on_warning)
        try:
            nodes = check_nodes(find_nodes(), self._inputs, self.on_warning)
            self._count, self._cores = shared(nodes, self._where.count, self._gpus, self._threads)
            if self._scores and not self._gpus and any(node.gpus for node in nodes):
                self.on_warning(
                    "the study runs on CPUs, as this process does; to use the cluster's GPUs, start it "
                    "on a machine with one"
                )
        except BaseException:
            self._disconnect()
            raise
        super().__enter__()
        return self

    def new_name(self) -> str:
        """See :meth:`Crew.new_name`: the name has the cluster's address in it."""
        return f"{_prefix()}{uuid.uuid4().hex}"

    def start(self, worker: str, place: int) -> Actor:
        """See :meth:`Crew.start`."""
        environment = {WORKER: worker, "OMP_NUM_THREADS": str(self._cores)}
        if not self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        strategy: Any = "SPREAD"
        if self._gpus > 1:  # vLLM's tensor parallelism: a dead worker's GPUs are its successor's
            if place not in self._groups:
                bundle = {"CPU": self._cores, "GPU": self._gpus}
                self._groups[place] = placement_group([bundle], strategy="STRICT_PACK")
            strategy = PlacementGroupSchedulingStrategy(self._groups[place])
        handle = (
            ray.remote(Worker)
            .options(
                name=worker,
                namespace=NAMESPACE,
                num_cpus=self._cores,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": environment},
            )
            .remote()
        )
        return Actor(
            handle, handle.place.remote(), handle.work.remote(str(self._home), self._cores)
        )

    def ended(self, member: Actor) -> End | None:
        """See :meth:`Crew.ended`."""
        ready, _ = ray.wait([member.result], timeout=0)
        if not ready:
            return None
        try:
            record = ray.get(member.result)
        except RayActorError as error:
            self.kill(member)  # it may only be out of reach
            return End(not error.actor_init_failed, _line(error))
        except RayTaskError as error:
            return End(error=_line(error.cause if error.cause is not None else error))
        except RayError as error:
            self.kill(member)
            return End(True, _line(error))
        return End(record.get("replace", False), record.get("error", ""))

    def collect(self, on_end: Callable[[str], None]) -> None:
        """See :meth:`Crew.collect`; warns once if workers do not start."""
        if not self._said and time.monotonic() - self._began > LATE:
            self._said = True
            places = [member.place for member in self.members.values()]
            started, waiting = ray.wait(places, num_returns=len(places), timeout=0)
            if waiting:
                needs = f"{self._cores} cores" + (f", {self._gpus} GPUs" if self._gpus else "")
                self.on_warning(
                    f"{len(waiting)} of {len(places)} workers wait for resources of the Ray cluster "
                    f"(each needs {needs}); {len(started)} run"
                )
        try:
            super().collect(on_end)
        except (RayError, ConnectionError) as error:
            raise MerganserError(f"the Ray cluster does not answer ({_line(error)})") from None

    def kill(self, member: Actor) -> None:
        """See :meth:`Crew.kill`."""
        with suppress(RayError, ValueError):
            ray.kill(member.handle, no_restart=True)

    def stop(self, members: Mapping[str, Actor]) -> None:
        """See :meth:`Crew.stop`."""
        try:
            running = [member for member in members.values() if self.ended(member) is None]
            for member in running:
                _terminate(member)
            if results := [member.result for member in running]:
                ray.wait(results, num_returns=len(results), timeout=PATIENCE)
            for member in members.values():
                self.kill(member)
            for group in self._groups.values():
                remove_placement_group(group)
        finally:
            self._disconnect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.members:  # all units have ended, and so do the workers
            results = [member.result for member in self.members.values()]
            ray.wait(results, num_returns=len(results), timeout=PATIENCE)
        super().__exit__(kind, error, trace)

    def gone(self, workers: Collection[str]) -> list[str]:
        """See :meth:`Crew.gone`: the actors of a driver that was killed die with it."""
        ours = [worker for worker in workers if worker.startswith(_prefix())]
        if not ours:
            return []
        named = ray.util.list_named_actors(all_namespaces=True)
        alive = {each["name"] for each in named if each["namespace"] == NAMESPACE}
        return [worker for worker in ours if worker not in alive and worker not in self.members]

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            ray.shutdown()
            _print_deaths(True)


def connect(address: str | None, on_warning: Callable[[str], None]) -> bool:
    """Connect to a Ray cluster, or start one on this machine if there is none.

    Args:
        address: ``ray://HOST:PORT``; None for ``RAY_ADDRESS``, or the cluster of this machine.
        on_warning: called if a cluster is started.

    Returns:
        Whether this process was not connected before.

    Raises:
        MerganserError: no cluster answers, or it has other versions.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False}
    common["logging_level"] = "error"
    try:
        ray.init(address or "auto", **common)
    except ConnectionError as error:
        if address is not None or os.environ.get("RAY_ADDRESS"):
            asked = address or os.environ["RAY_ADDRESS"]
            raise MerganserError(
                f"{asked}: no Ray cluster answers there ({_line(error)})"
            ) from None
        on_warning("no Ray cluster runs on this machine; one is started for this command")
        ray.init(
            num_cpus=system.cores(),
            include_dashboard=False,
            object_store_memory=OBJECTS,
            **common,
        )
    except (RayError, RuntimeError, ValueError) as error:  # RuntimeError: other versions
        raise MerganserError(f"Ray: {_line(error)}") from None
    finally:
        _print_deaths(False)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    return True


def _print_deaths(enabled: bool) -> None:
    """Choose whether Ray prints the deaths of workers: it does so on stdout, where our results go."""
    with suppress(ImportError):  # there is no public switch
        from ray._private import worker

        worker._worker_logs_enabled = enabled


def find_nodes() -> list[Node]:
    """Return the living nodes of the cluster that have cores."""
    living = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    names = [node["NodeManagerHostname"] for node in living]
    return [
        Node(
            node["NodeID"],
            name if names.count(name) == 1 else f"{name} (Ray's node {node['NodeID'][:8]})",
            int(node["Resources"]["CPU"]),
            int(node["Resources"].get("GPU", 0)),
        )
        for node, name in zip(living, names, strict=True)
    ]


def check_nodes(
    nodes: Sequence[Node], inputs: Sequence[Input], on_warning: Callable[[str], None]
) -> list[Node]:
    """Check that every node sees the files of a study; return the nodes that answer.

    Args:
        nodes: the nodes.
        inputs: the files.
        on_warning: called for a node that does not answer, and for one that has to download a model.

    Raises:
        InputError: a node lacks a file or has another one of that path.
        MerganserError: a node lacks Merganser, or none answers.
    """
    look = ray.remote(make_look())
    files = ray.put([asdict(each) for each in inputs])
    looks = [
        look.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(files)
        for node in nodes
    ]
    answering: list[Node] = []
    failure = ""
    for node, answer in zip(nodes, looks, strict=True):
        try:
            found = ray.get(answer, timeout=LATE)
        except RayTaskError as error:
            raise MerganserError(f"node {node.name}: {_line(error)}") from None
        except RayError as error:  # it has just died
            failure = f"node {node.name} does not answer ({_line(error)})"
            on_warning(f"{failure}; it gets no worker unless it comes back")
            continue
        if message := refusal(node.name, found):
            kind = MerganserError if found["lacking"] else InputError
            raise kind(message)
        if found["download"]:
            on_warning(
                f"node {node.name} has to download {', '.join(found['download'])} from the Hub first: "
                "not in its cache"
            )
        answering.append(node)
    if nodes and not answering:
        raise MerganserError(failure)
    return answering


def _terminate(member: Actor) -> None:
    """Send SIGTERM to a worker, which then stores its completions, and returns."""

    def send(process: int) -> None:
        import os
        import signal

        os.kill(process, signal.SIGTERM)

    with suppress(RayError):  # it has not started, or has ended
        node, process = ray.get(member.place, timeout=0)
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        ray.remote(send).options(num_cpus=0, scheduling_strategy=where).remote(process)


def _prefix() -> str:
    address = ray.get_runtime_context().gcs_address
    return f"ray-{hashlib.sha256(address.encode()).hexdigest()[:8]}-"


def _line(error: BaseException) -> str:
    """Return a library's error as one line, with the last line of a traceback."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
