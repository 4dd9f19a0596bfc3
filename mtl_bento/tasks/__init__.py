"""One file per kind of tasks; `_base.py` holds their promises and the registry."""
