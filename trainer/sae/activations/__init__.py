"""Define what stands between encoder and decoder."""
