"""Serves a trained model over HTTP: the REST form of TensorFlow Serving, and the Open Inference Protocol v2."""
