"""Running and binding servers: processes that are started, watched and ended; models mapped to those who answer."""
