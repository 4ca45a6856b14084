# A router: clients connect to port 5555, services to port 5556.
#
#     docker build --tag butler-mesh-router .
#     docker run --publish 127.0.0.1:5555:5555 --publish 127.0.0.1:5556:5556 butler-mesh-router
#
# Who reaches these ports can use the mesh, and stop it: publish them on loopback, or not at all and have
# clients and services join the container's network.

FROM python:3.12-slim AS build

COPY setup.py pyproject.toml README.rst LICENSE /src/
COPY butler_mesh /src/butler_mesh
RUN python -m venv /opt/mesh && /opt/mesh/bin/pip install --no-cache-dir /src

FROM python:3.12-slim

COPY --from=build /opt/mesh /opt/mesh
ENV PATH=/opt/mesh/bin:$PATH \
    BUTLER_MESH_FRONTEND=tcp://0.0.0.0:5555 \
    BUTLER_MESH_BACKEND=tcp://0.0.0.0:5556

# Nobody: it needs no home, no name and no file of its own.
USER 10001:10001
EXPOSE 5555 5556

# It finishes what is in flight, for up to 30 s: stop it with "docker stop -t 35".
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["butler-mesh", "call", "tcp://127.0.0.1:5555/mmi.status", "/", "--timeout", "2"]

ENTRYPOINT ["butler-mesh", "router"]
