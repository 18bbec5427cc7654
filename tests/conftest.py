"""What pytest does before the tests."""

# The files that take longest, which start first: at the end, no process waits long for another one.
_FIRST = (
    "prediction/predictors_test.py", "train_test.py", "export/artifact_test.py", "generation_test.py",
    "training/distribution_test.py", "keras_test.py", "tasks/classify_test.py", "generate_test.py", "tune_test.py",
    "convert_test.py", "text/byte_level_test.py", "export/answers_test.py", "fuzz/fuzz_test.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Leaves out what is not a test: every tf.test.TestCase inherits a method `test_session`, which skips itself. A
    skip that is reported is then one that somebody wrote."""
    kept = [item for item in items if item.name != "test_session"]
    place = {f"tests/{name}": i for i, name in enumerate(_FIRST)}
    items[:] = sorted(kept, key=lambda item: place.get(item.nodeid.partition("::")[0], len(_FIRST)))
