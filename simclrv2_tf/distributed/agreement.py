"""Agreement of the workers before training: all are up, with the same settings, versions, devices and data.

TensorFlow's own start waits without a timeout, accepts any listening program as a worker, and compares nothing.
"""

import contextlib
import functools
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather
from simclrv2_tf.errors import SettingError, first_line

PROTOCOL = "simclrv2_tf worker 1"  # distinguishes a worker from another program
ATTEMPT_SECONDS = 5.0  # timeout of one request to a worker
LINGER_SECONDS = 10.0  # time for which a worker that has found a difference still answers the others
MAX_BYTES = 2**22  # maximum size of an answer
TEXT_BYTES = 4096  # maximum size of a text gathered through the devices
SHOWN_DIFFERENCES = 5

Record = Mapping[str, str]


def worker_addresses(cluster: tf.train.ClusterSpec) -> dict[str, str]:
    """Returns the address of each worker by its name, such as "worker 1", in the order of their replicas."""
    tasks = [(job, index) for job in cluster.jobs for index in cluster.task_indices(job)]
    return {f"{job} {index}": cluster.task_address(job, index) for job, index in tasks}


def meet(addresses: Mapping[str, str], own: str, record: Record, timeout: int) -> None:
    """Waits until all workers have exchanged their records, and compares these.

    Meanwhile this worker listens at its own address, where TensorFlow's server will listen later.

    Args:
        addresses: ``host:port`` by name, such as "worker 1", in the same order on every worker.
        own: the name of this worker.
        record: the values that all workers must agree on, by name.
        timeout: seconds to wait.

    Raises:
        SettingError: naming the worker that did not come up within ``timeout`` seconds, an address that cannot be used,
            or what the workers disagree on, with both values.
    """
    deadline = time.monotonic() + timeout
    record = {"cluster": ", ".join(addresses.values()), **record}
    answers: dict[str, Any] = {own: {"name": own, "record": record}}
    with _listening(addresses[own], own, record) as visitors:
        for name, address in addresses.items():
            if name != own:
                answers[name] = _wait_for_answer(name, address, own, deadline, timeout)
        misnamed = [
            f"{addresses[name]}: is {name} in the cluster of {own}, but was started as {answer['name']}"
            for name, answer in answers.items()
            if answer["name"] != name
        ]
        disagreement = (misnamed or [_disagreement({name: answers[name]["record"] for name in addresses})])[0]
        if disagreement:
            deadline = min(deadline, time.monotonic() + LINGER_SECONDS)
        while missing := [name for name in addresses if name not in visitors and name != own]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    if disagreement:
        raise SettingError(disagreement)
    if missing:
        place = f"{missing[0]} ({addresses[missing[0]]})"
        raise SettingError(f"--worker_timeout={timeout}: {place} did not reach {own} ({addresses[own]}) in {timeout} s")


def _wait_for_answer(name: str, address: str, own: str, deadline: float, timeout: int) -> dict[str, Any]:
    """Asks a worker for its name and record until it answers."""
    while True:
        answer, is_foreign = _ask(address, own, min(ATTEMPT_SECONDS, max(deadline - time.monotonic(), 0.1)))
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            other = " (another program listens there)" if is_foreign else ""
            raise SettingError(
                f"--worker_timeout={timeout}: {name} ({address}) did not come up within {timeout} s{other}"
            )
        time.sleep(0.2)


def _ask(address: str, own: str, seconds: float) -> tuple[dict[str, Any] | None, bool]:
    """Asks a worker for its record and confirms it; else returns None, and whether another program listens there."""
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=seconds)
    except socket.gaierror as error:
        raise SettingError(f"{address}: a worker's name does not resolve ({error.strerror})") from None
    except (OSError, ValueError, OverflowError):
        return None, False
    with connection:
        try:
            _send(connection, own, {})
            answer = _receive(connection, seconds)
            _send(connection, own, {})
            return answer, False
        except (OSError, ValueError, RecursionError):
            return None, True


def _send(connection: socket.socket, name: str, record: Record) -> None:
    connection.sendall(json.dumps({"protocol": PROTOCOL, "name": name, "record": record}).encode() + b"\n")


def _receive(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """Receives a message of `_send`; ValueError for anything else, TimeoutError if it is not complete in time."""
    content, end = b"", time.monotonic() + seconds
    while not content.endswith(b"\n"):
        connection.settimeout(max(end - time.monotonic(), 0.001))
        part = connection.recv(2**16)
        content += part
        if not part or len(content) > MAX_BYTES or time.monotonic() > end:
            raise ValueError("no message of a worker")
    message = json.loads(content)
    if not (isinstance(message, dict) and message.get("protocol") == PROTOCOL):
        raise ValueError("no message of a worker")
    if not (isinstance(message.get("name"), str) and isinstance(message.get("record"), dict)):
        raise ValueError("a damaged message")
    return message


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 1024


@contextlib.contextmanager
def _listening(address: str, own: str, record: Record) -> Iterator[set[str]]:
    """Answers other workers with a record; yields the growing set of those that have confirmed it."""
    visitors: set[str] = set()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                _receive(self.request, ATTEMPT_SECONDS)
                _send(self.request, own, record)
                visitors.add(_receive(self.request, ATTEMPT_SECONDS)["name"])

    try:
        server = _Server(("", int(address.rpartition(":")[2])), Handler)
    except (OSError, ValueError, OverflowError) as error:
        raise SettingError(f"{address}: this worker cannot listen there ({first_line(error)})") from None
    with server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield visitors
        finally:
            server.shutdown()


def _disagreement(records: Mapping[str, Record]) -> str:
    """Describes in one line how the records differ from that of the first worker; "" if all are equal."""
    (first, reference), *others = records.items()
    differences = [
        f"{key} is {reference.get(key)} on {first} but {record.get(key)} on {name}"
        for name, record in others
        for key in dict.fromkeys((*reference, *record))
        if reference.get(key) != record.get(key)
    ]
    if not differences:
        return ""
    more = f"; and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
    shown = "; ".join(differences[:SHOWN_DIFFERENCES])
    return f"the workers disagree: {shown}{more}; start all of them with the same command and the same data"


def has_workers(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the run has several worker processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


@contextlib.contextmanager
def agreement(strategy: tf.distribute.Strategy) -> Iterator[dict[str, str]]:
    """Yields a record that the body fills; afterwards the records of all workers are compared.

    All workers must enter the same agreements in the same order. A no-op without other workers.

    Raises:
        SettingError: on every worker, if the body raises it on one of them, or the records differ.
    """
    record: dict[str, str] = {}
    try:
        yield record
    except SettingError as error:
        if has_workers(strategy):
            _gather_texts(strategy, json.dumps({"refused": str(error)[:1000]}))
        raise
    if not has_workers(strategy):
        return
    names = worker_addresses(strategy.cluster_resolver.cluster_spec())
    texts = _gather_texts(strategy, json.dumps(record))
    records = {name: json.loads(text) for name, text in zip(names, texts, strict=True)}
    for name, other in records.items():
        if "refused" in other:
            raise SettingError(f"{name} has stopped: {other['refused']}")
    if disagreement := _disagreement(records):
        raise SettingError(disagreement)


def _gather_texts(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """Returns the text of each worker, on every worker."""
    content = text.encode()
    if len(content) > TEXT_BYTES:
        raise ValueError(f"a text of {len(content)} bytes")
    row = tf.constant([list(content.ljust(TEXT_BYTES))], tf.float32)  # [1, TEXT_BYTES]
    rows = gather_rows(strategy)(row).numpy().astype(np.uint8)  # [replicas, TEXT_BYTES]
    of_each_worker = rows[:: len(strategy.extended.worker_devices)]
    return [row.tobytes().decode().rstrip() for row in of_each_worker]


@functools.cache
def gather_rows(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that concatenates the rows of all replicas, on every worker."""
    return tf.function(lambda value: strategy.experimental_local_results(strategy.run(all_gather, args=(value,)))[0])
