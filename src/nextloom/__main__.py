"""``python -m nextloom``: the command, without the working directory among the places modules come from."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # put there by -m; a stranger's duckdb.py in it would be imported

from nextloom.cli import main

main()
