"""The program: `rankwise`, or `python -m rankwise`."""

import sys


def main() -> None:
    """Run the command line and leave with its exit code, also where it is interrupted before it is there."""
    try:
        from rankwise.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
