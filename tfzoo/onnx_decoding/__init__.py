"""Text from exported ONNX decoders and encoder-decoders, with onnxruntime, NumPy and tokenizers instead of TensorFlow:
for tfzoo.generate, predict and score, and for the server.

sessions     opens graphs
graphs       reads prompts and steps, with the keys and values between them
draws, constraints, sample, beam    the NumPy counterparts of the modules of tfzoo.generation, which choose the same
             tokens from the same logits
tokens       texts to ids and back, with an artifact's tokenizer.json
writer       prompts in, texts out; likelihood: scores of texts
"""
