import unittest

from tfzoo.data import prose

GOOGLE = """Adds two tensors of one shape.

    The sum is computed element by element, in the `dtype` of **both**.
    See [the guide](https://example.com/guide) for more.

    For example:

    ```python
    y = add(x, x)  # This is code, and it goes.
    ```

    Note: the result is not cached in any way.

    Args:
      x: A tensor of any shape, which goes.
      y: Another tensor, of the shape of `x`.

        Still the description of y, and it goes.

    Returns:
      A tensor that nobody will read about.

    Raises:
      ValueError: the shapes are not the same, and this goes.

    This paragraph stands behind the sections, and it stays.
    """

NUMPY = """
    add(x, y, /, out=None, *, where=True)

    Adds two arrays of one shape [1]_.

    The sum is computed element by element.

    .. versionadded:: 1.2
        It was not there before the version.

    Parameters
    ----------
    x : ndarray
        The first of the arrays, which goes.

    Returns
    -------
    ndarray
        The sum of the arrays, which goes.

    See Also
    --------
    subtract : The other way round, which goes.

    Notes
    -----
    It is the same as ``x + y`` for arrays of numbers.

    .. math:: x_i + y_i

    ==== ====
    one  two
    ==== ====
    a    table that has to go
    ==== ====

    Examples
    --------
    This is an example of the use.

    >>> add(1, 2)
    3
    """

SPHINX = """Sends a request by :meth:`~client.Client.send` to the server.

    It waits for the :class:`answer <Answer>` as long as `the
    configuration <https://example.com>`_ says. `timeout` is the limit.

    * Requests of the same kind are sent together.
    * The order of the others is kept.

    .. note::
        A server may close the connection at any time.

    .. code-block:: python

        send(the_request, to=the_server)

    Literal blocks are gone as well, as is this one::

        the = request.to(server)

    :param request: the request to be sent, and it goes.
        This goes on with the parameter.
    :returns: the answer that goes too.
    """


def flat(docstring):
    return [" ".join(paragraph) for paragraph in prose.paragraphs(docstring)]


class ProseTest(unittest.TestCase):
    def test_google(self):
        self.assertEqual(
            flat(GOOGLE),
            [
                "Adds two tensors of one shape.",
                "The sum is computed element by element, in the dtype of both. See the guide for more.",
                "Note: the result is not cached in any way.",
                "This paragraph stands behind the sections, and it stays.",
            ],
        )

    def test_numpy(self):
        self.assertEqual(
            flat(NUMPY),
            [
                "Adds two arrays of one shape.",
                "The sum is computed element by element.",
                "It is the same as x + y for arrays of numbers.",
            ],
        )

    def test_sphinx(self):
        self.assertEqual(
            flat(SPHINX),
            [
                "Sends a request by send to the server.",
                "It waits for the answer as long as the configuration says. timeout is the limit.",
                "Requests of the same kind are sent together.",
                "The order of the others is kept.",
                "A server may close the connection at any time.",
            ],
        )

    def test_paragraphs_hold_sentences(self):
        self.assertEqual(
            prose.paragraphs("One sentence is here. Another is there too.\n\nThe third is on its own."),
            [["One sentence is here.", "Another is there too."], ["The third is on its own."]],
        )

    def test_summary_without_a_full_stop_stays(self):
        text = "Return a copy of the list\n\nA title of the kind\n\nIt is shallow, and it is new."
        self.assertEqual(flat(text), ["Return a copy of the list", "It is shallow, and it is new."])

    def test_signatures_lists_of_names_and_licences_go(self):
        for text in (
            "range(start, stop[, step]) -> range object",
            "alpha beta gamma delta epsilon",
            "Copyright 2020 by the authors of this.",
            "Licensed under the terms of the licence.",
            "x = the_first + the_second_of(them)",
            "| a | table of the things |",
            "See https://example.com for more of this.",
            "Ok.",
            "",
        ):
            with self.subTest(text):
                self.assertEqual(flat(text), [])

    def test_special_names_keep_their_underscores(self):
        self.assertEqual(flat("It is called by `__init__` of the class."), ["It is called by __init__ of the class."])

    def test_names_with_their_meaning(self):
        self.assertEqual(
            flat("The fields are those of the record.\n\nsize: The number of the rows.\nkind (str): The name of it."),
            ["The fields are those of the record.", "The number of the rows.", "The name of it."],
        )

    def test_ends_at_an_unclosed_fence(self):
        self.assertEqual(flat("This is the first part.\n\n```\nThis is the code of it."), ["This is the first part."])
