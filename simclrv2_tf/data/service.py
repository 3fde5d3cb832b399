"""Data services: other machines that decode the training images.

``python -m simclrv2_tf.data.service --address=HOST:PORT`` starts one: a dispatcher of tf.data with a single worker,
in one process. What it is asked for comes in order, which several workers of one dispatcher do not keep; so a run that
names several services asks each for its own rows of every batch.
"""

import socket
import sys
import threading

import tensorflow as tf
from absl import app, flags

from simclrv2_tf.data.sources import ArraySource, FileSource, Source
from simclrv2_tf.errors import SettingError, first_line

PROTOCOL = "grpc://"
NEEDS_PYTHON = (".bmp", ".gif", ".webp")  # to be decoded, and a service has none of the run's functions


def serve(address: str) -> tuple[tf.data.experimental.service.DispatchServer, object]:
    """Starts a service in this process.

    Args:
        address: ``host:port`` by which the training machines reach it; the port after it is used too.

    Returns:
        Its two servers, which run while they are referred to.

    Raises:
        SettingError: if it cannot listen there.
    """
    service = tf.data.experimental.service
    try:
        host, port = address.rpartition(":")[0], int(address.rpartition(":")[2])
        for each in (port, port + 1):  # of which gRPC would share one that is in use
            socket.create_server(("", each)).close()
        dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        worker = service.WorkerConfig(f"localhost:{port}", f"{host}:{port + 1}", port + 1)
        return dispatcher, service.WorkerServer(worker)
    except (OSError, OverflowError, ValueError, tf.errors.OpError) as error:
        raise SettingError(f"--address={address}: no service can listen there ({first_line(error)})") from None


def services(addresses: str, source: Source, timeout: int) -> tuple[str, ...]:
    """The services of ``--data_service``, all of which have answered.

    Args:
        addresses: its value.
        source: the images that they are to decode.
        timeout: seconds to wait for them.

    Raises:
        SettingError: naming the service that does not answer; or there is nothing that they could do.
    """

    def refuse(why: str) -> SettingError:
        return SettingError(f"--data_service={addresses}: {why}")

    found = tuple(address for address in addresses.split(",") if address)
    if isinstance(source, ArraySource) or getattr(source, "encoded", None) is not None:
        raise refuse(f"{source.name} is in this machine's memory, where no other can read it")
    if isinstance(source, FileSource):
        for path in source.paths:
            if path.lower().endswith(NEEDS_PYTHON):
                raise refuse(f"services decode JPEG and PNG, not {path}")
    if len(set(found)) < len(found):
        raise refuse("the same service is there twice")
    for address in found:
        host, _, port = address.removeprefix(PROTOCOL).rpartition(":")
        if not address.startswith(PROTOCOL) or not port.isdecimal():
            raise refuse(f"must be {PROTOCOL}HOST:PORT, of several with commas")
        try:
            socket.getaddrinfo(host, int(port))
        except (OSError, OverflowError, UnicodeError):
            raise refuse(f"{host} does not resolve") from None
        if not _answers(address, timeout):
            raise refuse(f"{address} has not answered within --worker_timeout={timeout} seconds")
    return found


def _answers(address: str, timeout: int) -> bool:
    """Whether a service yields something; asked in a thread, since TensorFlow asks for ever."""
    answered = threading.Event()

    def ask() -> None:
        off = tf.data.experimental.service.ShardingPolicy.OFF
        data = tf.data.Dataset.range(1).apply(tf.data.experimental.service.distribute(off, address))
        if data.get_single_element() == 0:
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(timeout)


def main(argv: list[str]) -> None:
    """Serves until it is ended."""
    address = flags.FLAGS.address
    try:
        dispatcher, _worker = serve(address)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"--data_service={PROTOCOL}{address}", flush=True)
    dispatcher.join()


if __name__ == "__main__":
    flags.DEFINE_string("address", None, "HOST:PORT by which the training machines reach this one.", required=True)
    app.run(main)
