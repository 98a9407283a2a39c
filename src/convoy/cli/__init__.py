"""The command ``convoy``: one file per verb, results on stdout, everything else on stderr."""
