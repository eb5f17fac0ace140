"""How the bundled demo model is made: tokenizer, training, evaluation, export."""
