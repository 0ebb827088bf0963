"""Run the command line: ``scopemill``, or ``python -m scopemill.deploy``."""

import sys


def main() -> None:
    """Run the command line, or say what to install where only the core is."""
    try:
        from scopemill.deploy.cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("scopemill"):
            raise
        sys.exit(f"error: the command line needs {error.name}, which the core leaves out: pip install 'scopemill[mill]'")
    run()


if __name__ == "__main__":
    main()
