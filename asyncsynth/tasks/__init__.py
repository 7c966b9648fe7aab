"""Steps that ask a model, one file each, with the prompt beside the code that reads the answer."""
