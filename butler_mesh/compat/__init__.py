"""The faces of older systems: each one's documented programs run here with other imports.

They stand on the public API alone, and nothing stands on them: the whole wing may be left out.
"""
