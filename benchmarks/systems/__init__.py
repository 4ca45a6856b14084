"""The competitors, one file each; ``SYSTEMS`` in it says under which names and forms it competes."""
