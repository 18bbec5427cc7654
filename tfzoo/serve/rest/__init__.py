"""The REST front end: TF Serving's routes, OpenAI's, a page for people, and a description of them all."""
