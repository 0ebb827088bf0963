"""Run the command line: ``python -m scopemill.deploy``."""

from scopemill.deploy.cli.main import main

main()
