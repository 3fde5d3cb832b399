"""Data services: other machines that decode the training images.

``python -m simclrv2_tf.data.service --address=HOST:PORT`` starts one: a `tf.data` dispatcher with a single worker, in
one process. Several workers of one dispatcher would not keep the order of the batches; so a run that names several
services asks each one for its own rows of every batch.
"""

import socket
import sys
import threading
from collections.abc import Sequence

import tensorflow as tf
from absl import app, flags

from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.interrupts import SignalWatch, waiting

PROTOCOL = "grpc://"
# Decoded by a Python function of the run, which a service does not have.
PYTHON_FORMATS = (".avif", ".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff", ".webp")


def serve(address: str) -> tuple[tf.data.experimental.service.DispatchServer, object]:
    """Starts a service in this process.

    Args:
        address: ``host:port`` by which the training machines reach it; the next port is used as well.

    Returns:
        Dispatcher and worker, which run as long as they are referenced.

    Raises:
        SettingError: if it cannot listen there.
    """
    service = tf.data.experimental.service
    try:
        host, port = address.rpartition(":")[0], int(address.rpartition(":")[2])
        for needed in (port, port + 1):  # gRPC would share a port that is in use
            socket.create_server(("", needed)).close()
        dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        worker = service.WorkerConfig(f"localhost:{port}", f"{host}:{port + 1}", port + 1)
        return dispatcher, service.WorkerServer(worker)
    except (OSError, OverflowError, ValueError, tf.errors.OpError) as error:
        raise SettingError(f"--address={address}: no service can listen there ({first_line(error)})") from None


def services(addresses: str, source: Source, timeout: int) -> tuple[str, ...]:
    """Returns the services of ``--data_service`` after all of them have answered.

    Args:
        addresses: the value of the flag: addresses with commas between them.
        source: the images to decode.
        timeout: seconds to wait for each of them.

    Raises:
        SettingError: naming the service that does not answer, or if the images cannot be decoded by a service.
    """

    def refuse(reason: str) -> SettingError:
        return SettingError(f"--data_service={addresses}: {reason}")

    if source.in_memory:
        raise refuse(f"{source.name} is in this machine's memory, where no other can read it")
    for path in source.paths or ():
        if path.lower().endswith(PYTHON_FORMATS):
            raise refuse(f"services decode JPEG and PNG, not {path}")
    names = tuple(address for address in addresses.split(",") if address)
    if len(set(names)) < len(names):
        raise refuse("the same service is listed twice")
    for address in names:
        host, _, port = address.removeprefix(PROTOCOL).rpartition(":")
        if not address.startswith(PROTOCOL) or not port.isdecimal():
            raise refuse(f"must be {PROTOCOL}HOST:PORT; separate several by commas")
        try:
            socket.getaddrinfo(host, int(port))
        except (OSError, OverflowError, UnicodeError):
            raise refuse(f"{host} does not resolve") from None
        with waiting(f"the data service {address}"):
            is_there = _answers(address, timeout)
        if not is_there:
            raise refuse(f"{address} did not answer within --worker_timeout={timeout} seconds")
    return names


def _answers(address: str, timeout: int) -> bool:
    """Returns whether a service yields data. Waits in a thread, as TensorFlow itself would wait forever."""
    answered = threading.Event()

    def ask() -> None:
        off = tf.data.experimental.service.ShardingPolicy.OFF
        data = tf.data.Dataset.range(1).apply(tf.data.experimental.service.distribute(off, address))
        if data.get_single_element() == 0:
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(timeout)


def describe_missing(services: Sequence[str]) -> str:
    """Describes the data services that take no connection now; "" if all do."""
    missing = []
    for service in services:
        host, _, port = service.removeprefix(PROTOCOL).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            missing.append(f"the data service {service}, which does not answer")
    return " and ".join(missing)


def main(argv: list[str]) -> None:
    """Serves until the process is stopped."""
    address = flags.FLAGS.address
    with SignalWatch():
        try:
            _servers = serve(address)
        except SettingError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        print(f"--data_service={PROTOCOL}{address}", flush=True)
        threading.Event().wait()  # the servers' own method to wait ignores signals


if __name__ == "__main__":
    flags.DEFINE_string("address", None, "HOST:PORT by which the training machines reach this one.", required=True)
    app.run(main)
