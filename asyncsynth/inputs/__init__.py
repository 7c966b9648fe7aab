"""Where rows come from: readers of JSON Lines, tables and Python data, one row in memory at a time."""
