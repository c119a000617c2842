"""TensorFlow on several machines that are equal: each worker has a part of every batch, and all have the same weights.

    wherry train --image … --preprocessing ../quickstart-network/preprocessing.py --algorithm keras_workers.py \
        --dataset digits --distributed ps=0,workers=2

TensorFlow finds the others by `TF_CONFIG`, which is set. The steps are written out, because `fit` of Keras 3 does not
know this strategy (that of Keras 2, the package tf-keras, does).
"""

from pathlib import Path

import tensorflow as tf


def train(data: tuple, params: dict, outputs: Path) -> dict:
    """Fit and evaluate; every worker comes to the same weights, and the first one's model is kept."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # first of all: it connects the workers
    workers = strategy.num_replicas_in_sync
    print(f"{workers} replicas", flush=True)
    (images, digits), (test_images, test_digits) = data
    batch, epochs = int(params.get("batch", 64)), int(params.get("epochs", 10))
    learning = tf.data.Dataset.from_tensor_slices((images.astype("float32"), digits))
    learning = learning.shuffle(len(images), seed=0).repeat().batch(batch)
    tf.keras.utils.set_random_seed(int(params.get("seed", 0)))
    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Input((64,)),
                tf.keras.layers.Dense(64, activation="relu"),
                tf.keras.layers.Dense(10),
            ]
        )
        optimizer = tf.keras.optimizers.Adam(0.005)
        optimizer.build(model.trainable_variables)

    @tf.function
    def step(chosen: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        def replica(chosen: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                scores = model(chosen, training=True)
                each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=wanted, logits=scores)
                lost = tf.nn.compute_average_loss(each, global_batch_size=batch)
            optimizer.apply_gradients(
                zip(tape.gradient(lost, model.trainable_variables), model.trainable_variables, strict=True)
            )
            return lost

        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica, args=(chosen, wanted)), axis=None)

    parts, steps, losses = iter(strategy.experimental_distribute_dataset(learning)), len(images) // batch, []
    for epoch in range(epochs):
        losses.append(sum(float(step(*next(parts))) for _ in range(steps)) / steps)
        print(f"::progress {(epoch + 1) / epochs:.3f}::epoch {epoch + 1} of {epochs}", flush=True)
    found = model(test_images.astype("float32")).numpy().argmax(1)
    model.save(outputs / "model.keras")
    return {"loss": losses, "test_accuracy": float((found == test_digits).mean()), "workers": workers}
