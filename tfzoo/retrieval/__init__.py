"""Retrieval: a folder with the vectors and the words of a corpus, and exact search in it.

documents   reads the texts and ids of a file, one at a time
bm25        words of texts, and an inverted index scored by BM25
encoder     vectors of texts from a model's folder; the only module here that imports TensorFlow
store       the folder: memory-mapped files and manifest.json with their checksums
build       writes the folder in blocks, and continues after a kill
fusion      one ranking from the scores of vectors and of BM25
search      open_index(folder).search(queries)
measures    recall, reciprocal rank and nDCG of results
"""
