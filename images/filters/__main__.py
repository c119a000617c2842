"""``python -m filters``: inside the image under this name, in the repository as ``images.filters``."""

import sys

from images.filters.command import main

sys.exit(main(sys.argv[1:]))
