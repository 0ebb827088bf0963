"""Read a corpus and pack its tokens into sequences and buckets of rows."""
