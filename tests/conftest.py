"""A mesh for whoever asks for one; and how hard the property tests try: HYPOTHESIS_PROFILE is
``default``, ``ci`` or ``long``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
from hypothesis import settings

from tests.brokers import Broker, free_port, running_broker
from tests.meshes import Mesh

# No deadline: a shared machine stalls for longer than any example takes. Not derandomized, which
# hypothesis does by itself where CI is set: a failure prints the blob that repeats it.
base = settings(deadline=None, print_blob=True, derandomize=False)
settings.register_profile("default", base)
settings.register_profile("ci", base, database=None)  # nobody would read what it keeps
settings.register_profile("long", base, max_examples=5_000)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A router on a free loopback port, and whoever joins it."""
    with Mesh() as made:
        yield made


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ of our own, started when a test first asks for it."""
    with running_broker(tmp_path_factory.mktemp("rabbitmq") / "node") as made:
        yield made


@pytest.fixture(scope="session")
def other_broker(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Broker]:
    """A second broker that knows nothing of the first, for its user and password; one that tests may kill."""
    home = tmp_path_factory.mktemp("rabbitmq") / "other"
    with running_broker(home, password=broker.password) as made:
        yield made
        made.stop(SIGKILL)  # quicker than its goodbye, and nothing of it is kept


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A broker that wants to see certificates; the endpoint, and where the one good certificate is."""
    home = tmp_path_factory.mktemp("tls")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1"
    names = "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    for command in (
        f"{make} -subj /CN=authority -keyout ca.key -out ca.pem",
        f"{make} -subj /CN=localhost {names} -CA ca.pem -CAkey ca.key -keyout key.pem -out cert.pem",
    ):
        subprocess.run(command.split(), cwd=home, check=True, capture_output=True, timeout=60)
    port = free_port()
    lines = f"""listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {home}/ca.pem
ssl_options.certfile = {home}/cert.pem
ssl_options.keyfile = {home}/key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""
    with running_broker(home / "node", lines) as made:
        yield f"amqps://mesh:{made.password}@127.0.0.1:{port}", home
        made.stop(SIGKILL)
