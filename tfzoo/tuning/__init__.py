"""The search of tfzoo.tune: what is searched, its trials, and what it shows."""
