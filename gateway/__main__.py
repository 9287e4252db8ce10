"""The command line entry: `imaging-gateway` and `python -m gateway`."""

from gateway.cli.commands import main

if __name__ == "__main__":
    main()

__all__ = ["main"]
