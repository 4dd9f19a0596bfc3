"""One file per kind of encoders; `_base.py` holds their promises and the registry."""
