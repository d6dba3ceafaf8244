"""Run `python -m hintdistill.cli`."""

from hintdistill.cli.main import main

main()
