"""Values to text. Everything here returns `str`; only `autotune.cli` writes."""
