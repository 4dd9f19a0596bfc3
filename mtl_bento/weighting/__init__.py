"""One file per kind of weighting; `_base.py` holds their promises and the registry."""
