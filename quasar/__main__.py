"""`python -m quasar`, for launchers that take a module."""

from quasar.cli import main

main()
