"""``python -m rarvision`` is ``rarvision``."""

from rarvision.cli import main

if __name__ == "__main__":
    main()
