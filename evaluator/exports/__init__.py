"""Write evidence, weights and evaluations as other tools' files, and as a report."""
