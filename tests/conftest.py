"""What pytest does before the tests."""


def pytest_collection_modifyitems(items):
    """Leaves out what is not a test: every tf.test.TestCase inherits a method `test_session`, which skips itself. A
    skip that is reported is then one that somebody wrote."""
    items[:] = [item for item in items if item.name != "test_session"]
