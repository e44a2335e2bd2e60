"""Only so that pytest can tell the ``conftest.py`` of this folder from that of ``tests``."""
