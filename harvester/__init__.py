"""Run the language model over text and write its activations as shards."""
