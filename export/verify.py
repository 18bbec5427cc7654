"""Replays exported models: python export/verify.py FOLDER...

Runs tfzoo/export/verify.py and imports nothing else from tfzoo. Every artifact contains a copy of that file.
"""

import pathlib
import runpy

runpy.run_path(str(pathlib.Path(__file__).resolve().parents[1] / "tfzoo" / "export" / "verify.py"), run_name="__main__")
