"""What people are told: progress, reports, totals, a dry run, a doctor's findings; it commits nothing."""
