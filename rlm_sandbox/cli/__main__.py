"""Allow ``python -m rlm_sandbox.cli``."""

from rlm_sandbox.cli.entry import main

if __name__ == "__main__":
    main()
