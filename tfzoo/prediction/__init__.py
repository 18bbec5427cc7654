"""Answers of models for many texts: reading rows, batches of similar length, windows of long texts, resumable output.

predictor   the interface of what answers texts; models, savedmodels and onnx_graphs implement it
answers     numbers to records, the same for all of them
rows        the texts of a file; output: the file of answers
stream      rows to records, in order; triples: entities, then the relations between them, with two models
"""
