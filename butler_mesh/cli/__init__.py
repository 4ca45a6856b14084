"""The ``butler-mesh`` command: one file a sub-command."""
