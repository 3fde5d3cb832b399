"""Workers wait for each other, recognize each other, and end together if they disagree."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import pytest
import tensorflow as tf

from simclrv2_tf.distributed import agreement
from simclrv2_tf.distributed.agreement import meet
from simclrv2_tf.errors import SettingError

RECORD = {"--seed": "0", "TensorFlow": "2.21.0"}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


def free_addresses(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return {f"worker {i}": f"localhost:{each.getsockname()[1]}" for i, each in enumerate(sockets)}


def messages_of(*workers, timeout=30):
    """Returns the message with which each of several workers, (addresses, name, record), ends; "" for none."""

    def message(addresses, name, record):
        try:
            meet(addresses, name, record, timeout)
        except SettingError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        return [future.result() for future in [pool.submit(message, *worker) for worker in workers]]


def test_workers_that_agree_meet():
    addresses = free_addresses(4)
    assert messages_of(*((addresses, name, RECORD) for name in addresses)) == [""] * 4
    assert messages_of(*((addresses, name, RECORD) for name in addresses)) == [""] * 4  # the ports are free again


@pytest.mark.parametrize(
    ("difference", "described"),
    [
        ({"--seed": "7"}, "--seed is 0 on worker 0 but 7 on worker 2"),
        ({"TensorFlow": "2.20.0"}, "TensorFlow is 2.21.0 on worker 0 but 2.20.0 on worker 2"),
        ({"--new": "1"}, "--new is None on worker 0 but 1 on worker 2"),
        ({f"--{i}": str(i) for i in range(7)}, "--4 is None on worker 0 but 4 on worker 2; and 2 more"),
    ],
)
def test_workers_that_disagree_all_end_with_both_values(difference, described):
    addresses = free_addresses(3)
    records = [RECORD, RECORD, RECORD | difference]
    messages = messages_of(*((addresses, name, record) for name, record in zip(addresses, records, strict=True)))
    assert len(set(messages)) == 1 and "\n" not in messages[0]
    assert messages[0].startswith("the workers disagree: ") and described in messages[0]


def test_workers_of_other_clusters_are_told_apart():
    one, two = free_addresses(2), free_addresses(2)
    other = {"worker 0": two["worker 0"], "worker 1": one["worker 1"]}
    first, second = messages_of((one, "worker 0", RECORD), (other, "worker 1", RECORD), timeout=2)
    cluster = ", ".join(one.values())
    assert first.startswith(f"the workers disagree: cluster is {cluster} on worker 0 but {two['worker 0']}, ")
    assert second.startswith(f"--worker_timeout=2: worker 0 ({two['worker 0']}) did not come up within 2 s")


def test_two_workers_with_one_index_are_refused():
    addresses = free_addresses(2)
    swapped = {"worker 0": addresses["worker 1"], "worker 1": addresses["worker 0"]}
    message, _ = messages_of((addresses, "worker 0", RECORD), (swapped, "worker 0", RECORD), timeout=2)
    address = addresses["worker 1"]
    assert message == f"{address}: is worker 1 in the cluster of worker 0, but was started as worker 0"


def hello(**changes):
    return json.dumps({"protocol": agreement.PROTOCOL, "name": "worker 1", "record": {}} | changes).encode()


FOREIGN = {
    "silent": [],
    "closes": None,
    "a banner": [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "HTTP/2": [b"\0\0\x12\4\0\0\0\0\0" + bytes(18)],
    "drips": [b"x"] * 1000,
    "floods": [b"x" * 2**20] * 8,
    "other protocol": [hello(protocol="simclrv2_tf worker 0") + b"\n"],
    "no record": [hello(record=None) + b"\n"],
    "not an object": [b"[]\n"],
    "nested": [b"[" * 10**5 + b"\n"],
    "unfinished": [hello()],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_program_on_a_worker_s_port_is_not_a_worker(kind):
    addresses = free_addresses(2)
    ended = threading.Event()

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            for part in FOREIGN[kind] or ():
                connection.sendall(part)
                if kind == "drips" and ended.wait(0.05):
                    return
            if FOREIGN[kind] is not None:
                ended.wait(30)

    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("", int(addresses["worker 1"].rpartition(":")[2]))) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        started = time.monotonic()
        (message,) = messages_of((addresses, "worker 0", RECORD), timeout=1)
        seconds = time.monotonic() - started
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
    where = f"--worker_timeout=1: worker 1 ({addresses['worker 1']})"
    assert message == f"{where} did not come up within 1 s (another program listens there)" and seconds < 20


def test_a_worker_that_no_other_can_reach_is_named():
    """Worker 1 has answered worker 0, but has never asked it."""
    addresses = free_addresses(2)
    with agreement._listening(addresses["worker 1"], "worker 1", {"cluster": ", ".join(addresses.values())} | RECORD):
        (message,) = messages_of((addresses, "worker 0", RECORD), timeout=2)
    where = f"worker 1 ({addresses['worker 1']}) did not reach worker 0 ({addresses['worker 0']})"
    assert message == f"--worker_timeout=2: {where} in 2 s"


def test_strangers_that_connect_do_no_harm():
    addresses = free_addresses(2)
    port = int(addresses["worker 0"].rpartition(":")[2])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(messages_of, (addresses, "worker 0", RECORD))
        for content in (b"GET / HTTP/1.0\r\n\r\n", b"", b"\n", hello() + b"\n", hello(name=[]) + b"\n"):
            while True:
                with contextlib.suppress(ConnectionError), socket.create_connection(("localhost", port)) as connection:
                    connection.sendall(content)
                    break
        assert messages_of((addresses, "worker 1", RECORD)) == [""] and waiting.result() == [""]


def test_one_process_agrees_with_itself():
    with agreement.agreement(tf.distribute.get_strategy()) as record:
        record["images"] = "7"
    with pytest.raises(SettingError, match=r"^no data$"), agreement.agreement(tf.distribute.get_strategy()):
        raise SettingError("no data")
