"""What the package is, and what it needs to run."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="butler_mesh",
    version="0.1.0",
    description="A service mesh for gevent: path-routed requests through a router to service instances",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="the butler_mesh authors",
    license="MIT",
    packages=find_packages(include=["butler_mesh", "butler_mesh.*"]),
    package_data={"butler_mesh": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "gevent>=24.2",
        "pyzmq>=26",
        "ujson>=5.10",
        "jinja2>=3.1",
        "werkzeug>=3.0",
        "itsdangerous>=2.1",
        "click>=8.1",
        "rich>=13",
    ],
    extras_require={
        "fast": ["orjson>=3.10"],  # JSON, with BUTLER_MESH_CODEC=orjson
        "flask": ["flask>=3"],  # butler_mesh.web.flask
        "majortomo": ["pyyaml>=6"],  # the configuration file of its broker
        "rabbitmq": ["pika>=1.4,<2"],
        "servicebus": ["pika>=1.4,<2", "defusedxml>=0.7"],  # its brokers, and its XML
        "tracing": ["opentelemetry-api"],
        "dev": [
            "pytest>=8",
            "hypothesis",
            "mypy",
            "ruff",
            "types-gevent",
            "types-greenlet",
            "pyyaml>=6",
            "types-PyYAML",
            "pika>=1.4,<2",
            "defusedxml>=0.7",
            "types-defusedxml",
            "majortomo==0.2.0",  # a foreign client and worker that the tests talk to
            "py-servicebus==2.17; python_version < '3.12'",  # a foreign agent, too; needs asyncore
            "six",  # which majortomo needs and does not declare
            "flask>=3",  # a WSGI application of another make, behind our fronts
            "gunicorn>=22",  # a WSGI server of another make, before our applications
            "packaging",  # which gunicorn needs
            "docutils",  # reads the documentation, as a test
            "orjson>=3.10",  # the other codec, tested side by side with ujson
        ],
    },
    entry_points={
        "console_scripts": [
            "butler-mesh = butler_mesh.cli.main:main",
            "arpc_msg_sender.py = butler_mesh.compat.arpc.msg_sender:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX",
        "Typing :: Typed",
    ],
)
