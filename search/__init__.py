"""The study: which network? Imported as `mtl_bento_search`; it imports `mtl_bento`, never back."""
