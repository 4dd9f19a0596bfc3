"""One file per kind of backbones; `_base.py` holds their promises and the registry."""
