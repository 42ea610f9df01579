"""All that a user's code imports: install(app) and the version."""

from __future__ import annotations

__version__ = "0.1.0"
