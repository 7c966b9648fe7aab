"""TRL's trainers on the rows of real runs: `python -m tests.trainers`. Not part of the gate; see docs/trainers.md."""
