"""majortomo's client and worker under the names they had, over the mesh.

``from butler_mesh.compat import majortomo`` is all that a program changes. What it reaches is a router of
the mesh: majortomo's own clients and workers may be at the same one.
"""

from butler_mesh.compat.majortomo import error as error
from butler_mesh.compat.majortomo.client import Client as Client
from butler_mesh.compat.majortomo.mock import MockMDPClient as MockMDPClient
from butler_mesh.compat.majortomo.worker import Worker as Worker
from butler_mesh.compat.majortomo.worker import WorkerRequestsIterator as WorkerRequestsIterator

__all__ = ["Client", "MockMDPClient", "Worker", "WorkerRequestsIterator", "error"]
