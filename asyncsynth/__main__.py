"""`python -m asyncsynth`."""

from asyncsynth.cli.main import main

main()
