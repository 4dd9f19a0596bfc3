"""One file per kind of columns; `_base.py` holds their promises and the registry."""
