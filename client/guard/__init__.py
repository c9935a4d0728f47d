"""What may come to a site and what may leave it: policy, checks, ledger, audit."""
