"""``python -m decaylaws`` is the command ``decaylaws``."""

from decaylaws.entry import main

main()
