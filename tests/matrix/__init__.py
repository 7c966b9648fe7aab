"""The reliability matrix as one command: `python -m tests.matrix`. See docs/reliability.md."""
