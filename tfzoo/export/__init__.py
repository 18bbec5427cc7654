"""Artifacts that need nothing of tfzoo: `artifact.export` writes them, export/verify.py replays them."""
