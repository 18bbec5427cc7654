"""Fine-tunes a classifier from strings with Keras's fit.

    python docs/fine_tune.py MODEL_DIR LABELLED.tsv OUTPUT_DIR 5e-5

MODEL_DIR is a run or a Hugging Face folder; each line of LABELLED.tsv is a label, a tab, and a text; the last argument
is the learning rate.
"""

import sys

import keras
import tensorflow as tf

import tfzoo

if len(sys.argv) != 5:
    sys.exit(__doc__)
model_dir, labelled, output_dir, learning_rate = sys.argv[1:]
with open(labelled, encoding="utf-8") as file:
    rows = [line.rstrip("\n").split("\t", 1) for line in file]
labels = sorted({label for label, _ in rows})

model, tokenizer = tfzoo.load(model_dir, heads=["classify"], labels=labels)
dataset = tf.data.Dataset.from_tensor_slices(([text for _, text in rows], [labels.index(label) for label, _ in rows]))
batches = dataset.shuffle(len(rows), seed=1).batch(8).map(tfzoo.Preprocessor(model, tokenizer, sequence_length=64))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.AdamW(float(learning_rate)), loss, metrics=["accuracy"])
model.fit(batches, epochs=10, verbose=2)
tfzoo.save(model, output_dir, tokenizer)  # A Hugging Face folder; python -m tfzoo.export serves it.
