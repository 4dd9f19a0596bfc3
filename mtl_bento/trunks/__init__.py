"""One file per kind of trunks; `_base.py` holds their promises and the registry."""
