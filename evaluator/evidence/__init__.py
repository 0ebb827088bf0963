"""Say what every latent means, from one read of the rows."""
