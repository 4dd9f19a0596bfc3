"""One file per kind of heads; `_base.py` holds their promises and the registry."""
