"""Replays exported models: python export/verify.py FOLDER...

Runs tfzoo/export/verify.py, of which every artifact contains a copy; nothing else of tfzoo is imported.
"""

import pathlib
import runpy

runpy.run_path(str(pathlib.Path(__file__).resolve().parents[1] / "tfzoo" / "export" / "verify.py"), run_name="__main__")
