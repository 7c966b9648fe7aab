"""The run: records fed in, walked, journaled and counted; the run directory; what `run()` returns."""
