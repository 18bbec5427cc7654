"""Artifacts that run without tfzoo: `artifact.export` writes them and export/verify.py replays them."""
