"""arpc: calls over AMQP under the names they had. ``from butler_mesh.compat.arpc import mq``."""
