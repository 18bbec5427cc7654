"""Pre-training objectives, one file each.

An objective has
    prepare(example) -> features   one example, in a tf.data pipeline; random only through example["seed"]
    loss(model, batch, training) -> (sum, weight)   scalars; sums over replicas and microbatches, divided at the end
    metrics(model, batch) -> {name: (sum, weight)}   the same for what an evaluation reports
"""
