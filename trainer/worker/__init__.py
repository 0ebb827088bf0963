"""Train the SAEs of one stream in a process, alone or as one rank of several."""
