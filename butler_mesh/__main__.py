"""``python -m butler_mesh``: the same as ``butler-mesh``."""

from __future__ import annotations

from butler_mesh.cli.main import main

if __name__ == "__main__":
    main(prog_name="butler-mesh")
