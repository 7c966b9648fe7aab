"""How good the data of a run are, in numbers: measures of steps and columns, read from the journal."""
