"""Train the SAEs of one stream, in one process or several."""
