"""One request to one model, and the pool of servers that it may go to."""
