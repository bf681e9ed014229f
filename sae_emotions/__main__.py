"""`python -m sae_emotions` is `sae-emotions`."""

import sys

from sae_emotions.cli import main

if __name__ == "__main__":
    sys.exit(main())
